"""Print what the compiled Triton kernels need, for GPUs that need not be there.

python tools/bench/inspect_kernels.py                  # every example, sm_80 and sm_90
python tools/bench/inspect_kernels.py --filter toeplitz --arch 90
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmlk.ops.triton import machine_code  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--filter', default='', help='only examples whose name holds this text')
    parser.add_argument('--arch', type=int, nargs='+', default=[80, 90])
    args = parser.parse_args(arguments)
    torch.backends.cudnn.allow_tf32 = False  # fp32 examples of the direct kernels are strict
    print(
        f'{"example":<44} {"sm":>3} {"warps":>5} {"regs":>5} {"stack":>5} {"shared":>7} '
        f'{"instr":>6} {"loop":>6} {"FFMA":>5} {"mma":>4} {"s":>5}'
    )
    for name, example in machine_code.examples().items():
        if args.filter not in name:
            continue
        launch = machine_code.launch_of(example)
        for arch in args.arch:
            start = time.perf_counter()
            report = machine_code.inspect(launch, arch)
            print(
                f'{name:<44} {arch:>3} {launch.options.get("num_warps", 4):>5} '
                f'{report.registers:>5} {report.stack:>5} {report.shared:>7} '
                f'{report.instructions.total():>6} {report.hot_loop.total():>6} '
                f'{report.share("FFMA"):>5.2f} {report.tensor_core_instructions:>4} '
                f'{time.perf_counter() - start:>5.1f}',
                flush=True,
            )


if __name__ == '__main__':
    main()
