"""Find and segment defects on industrial surfaces."""
