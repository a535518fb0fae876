"""Pure functions of scores and labels, and their torchmetrics twin."""
