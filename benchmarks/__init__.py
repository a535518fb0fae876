"""What the package costs, each number a ratio to something run beside it: `python -m benchmarks`."""
