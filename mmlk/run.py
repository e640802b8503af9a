"""``python -m mmlk.run SCRIPT ARGUMENTS`` runs a script of another project with mmlk imported first.

``mmlk::`` paths in configs then resolve, and detectors find operators where mmcv has none compiled,
under scripts that never import mmlk or import it too late, as those of MMDetection do.
"""

import os
import runpy
import sys


def main() -> None:
    """Run the script that the first argument names as if it had been started itself."""
    if len(sys.argv) < 2:
        sys.exit('usage: python -m mmlk.run SCRIPT [ARGUMENTS]')
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
