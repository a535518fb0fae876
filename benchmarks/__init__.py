"""What the package costs, each number a ratio to something run beside it: `python -m benchmarks`."""

from anomaly_lab.hardware import share_cores

share_cores()  # as `anomaly-lab` does, and before torch is imported
