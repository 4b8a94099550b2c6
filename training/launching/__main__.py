"""`python -m training.launching STAGE`: the launcher, which an operator or `vargpt train` starts."""

import sys

from training.launching.launcher import main

sys.exit(main())
