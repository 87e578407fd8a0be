"""`python -m llem`, for where the `llem` command is not on PATH."""

import sys

from llem.cli import main

sys.exit(main())
