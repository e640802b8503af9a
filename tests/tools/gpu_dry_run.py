"""The whole GPU checks script on a device that is not there; tells each row once it is in a file.

    python tests/tools/gpu_dry_run.py --budget 60 --out FOLDER

Every comparison finds its sides equal, every time is one millisecond: what is seen is whether the script
gets through. Kernels are neither compiled nor launched, which `tests.ops.triton.device_cases` does for
the same cases. Takes the arguments of `run_gpu_checks.py`.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools' / 'bench')]

import run_gpu_checks  # noqa: E402
import torch  # noqa: E402
from gpu_runner import Runner  # noqa: E402

from mmlk.ops.triton import runtime  # noqa: E402
from tests.ops.triton import fake_device  # noqa: E402

FOLDER = 'MMLK_TEST_FAKE_DEVICE'


class Telling(Runner):
    """Prints the rows of a task after they were written."""

    def run(self, tasks, write, **options):
        def tell(rows):
            write(rows)
            print('written', json.dumps(rows), flush=True)

        super().run(tasks, tell, **options)


# The script's processes import this file as well: they too get the device.
os.environ.setdefault(FOLDER, tempfile.mkdtemp())
torch.set_num_threads(1)
fake_device.install(90, Path(os.environ[FOLDER]) / str(os.getpid()))
LAUNCHES = runtime.recording()
LAUNCHES.__enter__()

if __name__ == '__main__':
    run_gpu_checks.Runner = Telling
    sys.exit(run_gpu_checks.main())
