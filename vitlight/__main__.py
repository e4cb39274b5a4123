"""`python -m vitlight` is the `vitlight` command."""

import sys

from vitlight.cli import main

if __name__ == "__main__":
    sys.exit(main())
