"""`python -m diffstyler` is the `diffstyler` command."""

import sys

from diffstyler.cli import main

sys.exit(main())
