"""`python -m segjax VERB …`."""

import sys

from segjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
