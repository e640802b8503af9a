"""``python -m mmlk``: the same as the command ``mmlk``."""

import sys

from mmlk.cli.program import main

if __name__ == '__main__':
    sys.exit(main())
