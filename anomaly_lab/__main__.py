"""`python -m anomaly_lab` is the same command as `anomaly-lab`."""

import sys

from anomaly_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
