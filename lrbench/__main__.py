"""`python -m lrbench`."""

import sys

from lrbench.cli import main

sys.exit(main())
