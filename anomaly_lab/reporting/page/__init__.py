"""The report: one HTML page made of run directories, which needs nothing beside itself."""
