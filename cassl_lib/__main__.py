"""`python -m cassl_lib` is the shell command `cassl`."""

import sys

from cassl_lib.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
