"""Tables and figures from run directories; imports neither torch nor models."""
