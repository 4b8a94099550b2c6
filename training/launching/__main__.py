"""Entry point of `python -m training.launching STAGE`."""

import sys

from training.launching.launcher import main

sys.exit(main())
