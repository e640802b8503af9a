"""The same as `mmlk convert`, without an installation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmlk.cli.program import run_tool


def main(argv: list[str] | None = None) -> int:
    return run_tool('convert', argv)


if __name__ == '__main__':
    sys.exit(main())
