"""`python -m diffstyler` is the `diffstyler` command."""

import sys

from diffstyler.cli.main import main

sys.exit(main())
