"""`python -m rlkl` is the command `rlkl`."""

import sys

from rlkl.cli import main

sys.exit(main())
