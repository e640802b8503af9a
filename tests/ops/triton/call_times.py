"""Prints the CPU's time for one eager call of each operator on CUDA, where there is no GPU.

    python -m tests.ops.triton.call_times
    python -m tests.ops.triton.call_times --checkout FOLDER   # operators of another version

Tensors on the CPU stand for those on the device, so autograd, allocations and Triton's launchers are
the real ones; a driver that only counts stands for CUDA's (`fake_device`). What a GPU adds, a few
microseconds a launch in its driver, is the same in every version. The least of some rounds is printed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tests.ops.triton import fake_device


def _take_cuda_for_cpu() -> None:
    """Registers the kernels for CUDA, and none else, for tensors on the CPU; before `mmlk.ops`."""
    register = torch.library.Library.impl

    def impl(self, name, kernel, dispatch_key='', **options):
        if self.ns == 'mmlk' and dispatch_key in ('CPU', 'CUDA'):
            if dispatch_key == 'CPU':
                return None
            dispatch_key = 'CPU'
        return register(self, name, kernel, dispatch_key, **options)

    torch.library.Library.impl = impl
    from mmlk.ops import dispatch

    name = 'refusal_for_device' if hasattr(dispatch, 'refusal_for_device') else 'refuses_device'
    setattr(dispatch, name, lambda x, device, *operands: None if device == 'cuda' else device)


def cases(side: int) -> Iterator[tuple[str, Callable[..., Tensor], list[Tensor]]]:
    """Name, operator and its leaves, in bfloat16; maps of ``side``, channels-last."""
    from mmlk import ops

    n, c, g = 2, 384, 48

    def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
        x = torch.randn(n, c, side, side, dtype=torch.bfloat16)
        given = [x.to(memory_format=torch.channels_last), *map(torch.randn, shapes)]
        return [each.to(x.dtype).requires_grad_() for each in given]

    def dcls(weight: Tensor, positions: Tensor) -> Tensor:
        return ops.dcls_kernel2d(weight, positions, kernel_size=17, version='v1')

    yield '7x7', ops.depthwise_conv2d, leaves((c, 1, 7, 7))
    yield '17x17', ops.depthwise_conv2d, leaves((c, 1, 17, 17))
    branch = ((g, 1, 3, 3), (g,), (g, 1, 1, 11), (g,), (g, 1, 11, 1), (g,))
    yield 'Inception', ops.inception_dwconv2d, leaves(*branch)
    long = tuple((c, 1, *size) for size in ((47, 5), (5, 47), (5, 5)))
    yield 'SLaK, summed', lambda x, *weights: ops.large_kernel_sum(x, weights), leaves(*long)
    yield (
        'RecConv, 2 levels',
        lambda x, down, *weights: ops.recconv2d(x, down, list(weights)),
        leaves(*((c, 1, 5, 5),) * 4),
    )
    yield 'DCLS 17x17', dcls, leaves((c, 1, 34), (2, c, 1, 34))[1:]


def microseconds(function: Callable[[], object], calls: int = 100, rounds: int = 7) -> float:
    for _ in range(5):
        function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - start) / calls)
    return 1e6 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--checkout', type=Path, help='of the version whose operators are timed')
    parser.add_argument('--side', type=int, default=7, help='of the maps')
    args = parser.parse_args()
    if args.checkout:
        sys.path.insert(0, str(args.checkout))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        fake_device.load(90, Path(folder))
        _take_cuda_for_cpu()
        print(f'{"operator":<20}{"launches":>9}{"forward":>9}{"backward":>9}  us of CPU a call')
        for name, function, leaves in cases(args.side):
            with torch.no_grad():
                y = function(*leaves)
                forward = microseconds(lambda f=function, given=leaves: f(*given))
            cotangent = torch.ones_like(y)

            def both(f=function, given=leaves, cotangent=cotangent):
                torch.autograd.grad(f(*given), given, cotangent)

            fake_device.launches()
            both()
            count = len(fake_device.launches())
            train = microseconds(both)
            print(f'{name:<20}{count:>9}{forward:>9.0f}{train - forward:>9.0f}', flush=True)


if __name__ == '__main__':
    main()
