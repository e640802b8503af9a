"""What each group of compiled loops is worth: whole networks with it and without it.

    python tools/bench/ablate_loops.py --network SLaK-T DCLS-T --loops 'batch norm' GELU

Without a group torch or oneDNN computes the same; outputs must agree before anything is timed. All
settings run in turn within one process. A group that gains less than 5 % in every network is not worth
its code.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark_ops import device  # noqa: E402

from mmlk.networks import DCLSConvNeXt, InceptionNeXt, RecNeXt, SLaK  # noqa: E402
from mmlk.ops.blocks import attention  # noqa: E402
from mmlk.ops.dense import folded_linear, products  # noqa: E402
from mmlk.ops.large_kernel import normed  # noqa: E402
from mmlk.ops.norm import batch_norm  # noqa: E402

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    'InceptionNeXt-T': lambda: InceptionNeXt('tiny', output_norm=False),
    'SLaK-T': lambda: SLaK('tiny', output_norm=False),
    'DCLS-T': lambda: DCLSConvNeXt('tiny', output_norm=False),
    'RecNeXt-M3': lambda: RecNeXt('m3'),
    'RecNeXt-A3': lambda: RecNeXt('a3'),
}
TOLERANCE = 1e-3  # of the largest magnitude, float32, over a whole network

_linear, _input_gradient = products.linear, products.input_gradient


def _never(*_args: Any, **_options: Any) -> bool:
    return False


def _folded_by_onednn(x, weight, bias, residual, gelu, copies) -> Tensor:
    return folded_linear._by_onednn(x, weight, bias, residual, gelu, copies)


def _linear_then_gelu(x: Tensor, weight: Tensor, bias: Tensor | None):
    wide = _linear(x, weight, bias)
    return wide, F.gelu(wide)


def _gelu_after_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False
) -> Tensor:
    y = _linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def _gelu_gradient_after(grad: Tensor, weight: Tensor, before=None, scale=None) -> Tensor:
    y = _input_gradient(grad, weight, None, scale)
    return y if before is None else torch.ops.aten.gelu_backward(y, before)


LOOPS: dict[str, list[tuple[Any, str, Any]]] = {
    'batch norm': [(batch_norm, '_can_compile', _never), (normed, 'can_run', _never)],
    'attention': [(attention.loops_attention, 'can_run', _never)],
    'dense products': [
        (products, 'can_compile', _never),
        (folded_linear, '_by_loops', _folded_by_onednn),
    ],
    'weight gradient': [(products, 'MANY_PRODUCTS', 1 << 60)],
    'GELU': [
        (products, 'linear_gelu', _linear_then_gelu),
        (products, 'linear', _gelu_after_linear),
        (products, 'input_gradient', _gelu_gradient_after),
    ],
}
"""Group of loops -> what has to be replaced so that torch or oneDNN computes it."""


@contextlib.contextmanager
def without(group: str | None) -> Iterator[None]:
    """Everything that runs inside does without ``group``."""
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in LOOPS.get(group or '', ()):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def steps(network: nn.Module, x: Tensor, train: bool) -> Callable[[], list[Tensor]]:
    """One step that returns its outputs, in training after the backward pass."""
    if not train:
        network.eval().switch_to_deploy()

        def infer() -> list[Tensor]:
            with torch.no_grad():
                return list(network(x))

        return infer
    network.train()

    def step() -> list[Tensor]:
        network.zero_grad()
        outputs = list(network(x))
        sum(each.square().mean() for each in outputs).backward()
        return [each.detach() for each in outputs]

    return step


def measure(step: Callable, groups: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds with all loops and without each group, and the ratios.

    Raises:
        RuntimeError: If the outputs differ.
    """
    times: dict[str | None, list[float]] = {None: [], **{group: [] for group in groups}}
    want = step()
    for group in groups:
        with without(group):
            got = step()
        for index, (mine, theirs) in enumerate(zip(got, want)):
            error = ((mine - theirs).abs().max() / theirs.abs().max()).item()
            if not error <= TOLERANCE:
                raise RuntimeError(
                    f'ablate_loops: output {index} without {group} differs by {error:.1e}; '
                    'nothing is timed'
                )
    for _ in range(rounds):
        for group, found in times.items():
            with without(group):
                start = time.perf_counter()
                step()
                found.append(1e3 * (time.perf_counter() - start))
    whole = times.pop(None)
    results = {'all': dict(median_ms=statistics.median(whole), min_ms=min(whole))}
    for group, found in times.items():
        results[str(group)] = dict(
            median_ms=statistics.median(found),
            min_ms=min(found),
            gain_of_medians=statistics.median(found) / statistics.median(whole),
            gain_of_minima=min(found) / min(whole),
        )
    return results


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--network', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--loops', nargs='+', choices=LOOPS, default=list(LOOPS))
    parser.add_argument('--input', default='2x3x160x160', help='batch x channels x height x width')
    parser.add_argument('--mode', choices=('train', 'infer', 'both'), default='both')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--rounds', type=int, default=12)
    parser.add_argument('--out', type=Path, help='write all numbers to this JSON file')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    about = device()
    print('  '.join(f'{key} {value}' for key, value in about.items()))
    x = torch.randn([int(each) for each in args.input.split('x')])
    rows = []
    for name in args.network:
        for mode in ('train', 'infer'):
            if args.mode not in (mode, 'both'):
                continue
            torch.manual_seed(0)
            results = measure(steps(NETWORKS[name](), x, mode == 'train'), args.loops, args.rounds)
            rows.append(dict(network=name, mode=mode, results=results))
            gains = ', '.join(
                f'{group} {results[group]["gain_of_medians"]:.3f} '
                f'({results[group]["gain_of_minima"]:.3f})'
                for group in args.loops
            )
            print(f'{name} {mode} {results["all"]["median_ms"]:.0f} ms: {gains}', flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {key: value for key, value in vars(args).items() if key != 'out'}
        args.out.write_text(json.dumps(dict(device=about, settings=settings, rows=rows), indent=1))
        print(f'written to {args.out}')


if __name__ == '__main__':
    main()
