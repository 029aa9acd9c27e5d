"""`python -m edgeml_ipc`."""

import sys

from edgeml_ipc.cli import main

if __name__ == "__main__":
    sys.exit(main())
