"""Tasks for the tests of the GPU checks' processes, and a run of the script without a GPU."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools' / 'bench'))

from gpu_runner import Task


def twice(value):
    return {'task': str(value), 'result': f'ok {2 * value}'}


def fail():
    raise ValueError('no such thing')


def die():
    os._exit(3)


def hang():
    time.sleep(1000)


def several():
    return [{'task': 'a', 'result': 'ok'}, {'task': 'b', 'result': 'ok'}]


def doubles(args):
    return [Task(str(each), twice, (each,)) for each in range(3)]


def doubles_then_hang(args):
    return [*doubles(args), Task('endless', hang), *doubles(args)]


if __name__ == '__main__':  # the whole script, with sections of these tasks
    import run_gpu_checks
    import torch

    torch.cuda.is_available = lambda: True
    run_gpu_checks.about = lambda: {'device': 'none'}
    run_gpu_checks.SECTIONS = {
        'parity': run_gpu_checks.Section(doubles, 0.5, 60),
        'operators': run_gpu_checks.Section(doubles_then_hang, 0.5, 600, timed=True),
    }
    sys.exit(run_gpu_checks.main(['--jobs', '2', '--budget', '1200', *sys.argv[1:]]))
