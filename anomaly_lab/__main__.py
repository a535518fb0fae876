"""`python -m anomaly_lab` is the same command as `anomaly-lab`."""

import sys

from anomaly_lab.cli import main

sys.exit(main())
