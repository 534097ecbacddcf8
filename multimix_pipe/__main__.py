"""`python -m multimix_pipe` is the command `multimix-pipe`."""

import sys

from multimix_pipe.cli import main

if __name__ == "__main__":
    sys.exit(main())
