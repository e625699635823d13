"""`python -m videonsa`."""

import sys

from videonsa.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
