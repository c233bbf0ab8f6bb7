"""`python -m diffstyler` is the `diffstyler` command."""

import sys

from diffstyler.cli.signals import end_at_once


def run() -> int:
    """The command of this process's words -> its exit code; signals are answered from its first import to its end."""
    end_at_once()
    from diffstyler.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
