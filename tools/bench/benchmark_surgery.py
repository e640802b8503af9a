"""Times of other people's networks, untouched and after ``mmlk.accelerate``, in both memory layouts.

    python tools/bench/benchmark_surgery.py --threads 2                   # the table, about an hour
    python tools/bench/benchmark_surgery.py --only convnext_t van_b0 --mode infer --rounds 5

Each network is verified before it is timed: outputs by ``accelerate`` itself, gradients of a step here.
The untouched network and its accelerated copy then run in turn within one process. Networks of packages
that are not installed are rows that say so.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from benchmark_ops import CLOCKS, LAYOUTS, device  # noqa: E402
from networks import inferer, maps, trainer  # noqa: E402

import mmlk  # noqa: E402

TOLERANCE = 1e-4  # of the largest gradient of a parameter, float32, through a whole network
NETWORKS = {
    # name -> module, factory, arguments
    'mobilenet_v2': ('torchvision.models', 'mobilenet_v2', {}),
    'mobilenet_v3_l': ('timm', 'create_model', dict(model_name='mobilenetv3_large_100')),
    'efficientnet_b0': ('timm', 'create_model', dict(model_name='efficientnet_b0')),
    'convnext_t': ('timm', 'create_model', dict(model_name='convnext_tiny')),
    'fastvit_t8': ('timm', 'create_model', dict(model_name='fastvit_t8')),
    'edgenext_s': ('timm', 'create_model', dict(model_name='edgenext_small')),
    'starnet_s1': ('timm', 'create_model', dict(model_name='starnet_s1')),
    'mscan_t': (
        'mmseg.models.backbones',
        'MSCAN',
        dict(embed_dims=[32, 64, 160, 256], depths=[3, 3, 5, 2], norm_cfg=dict(type='BN')),
    ),
    'van_b0': ('mmpretrain.models.backbones', 'VAN', dict(arch='tiny')),
    'replknet_31b': ('mmpretrain.models.backbones', 'RepLKNet', dict(arch='31B')),
    'moganet_t': ('mmpretrain.models.backbones', 'MogaNet', dict(arch='tiny')),
}
SKIPPED = {
    ('fastvit_t8', 'channels_last'): "torch's own gradients corrupt the heap in this layout",
}
"""Networks and layouts that torch 2.11 cannot train on a CPU, and why."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--only', choices=NETWORKS, nargs='+', default=list(NETWORKS))
    parser.add_argument('--batch', type=int, default=2, help='images per step')
    parser.add_argument('--size', type=int, default=224, help='edge of the square image in pixels')
    parser.add_argument('--mode', choices=('train', 'infer', 'both'), default='both')
    parser.add_argument('--layout', choices=LAYOUTS, nargs='+', default=list(LAYOUTS))
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--clock', choices=CLOCKS, default='wall')
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--out', type=Path, help='write all numbers to this JSON file')
    return parser.parse_args(arguments)


def build(name: str) -> nn.Module | str:
    """The network with random weights, or why there is none."""
    module, factory, options = NETWORKS[name]
    try:
        make = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        return f'not available: {error}'
    torch.manual_seed(0)
    return make(**options)


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Gradients of all parameters in eval mode, in which networks draw no random numbers."""
    model.train(False)
    loss = sum(each.square().mean() for each in maps(model(x)))
    model.zero_grad()
    loss.backward()
    return [each.grad.clone() for each in model.parameters() if each.grad is not None]


def verify(name: str, plain: nn.Module, ours: nn.Module, x: Tensor) -> None:
    """Compare gradients with those of the untouched network in float64.

    Some gradients are sums that cancel, so that float32 holds none of their digits: errors may be ten
    times those of the untouched network in float32, and 1e-7 of the network's largest gradient.

    Raises:
        RuntimeError: If a gradient is off by more, and by `TOLERANCE`; nothing is timed then.
    """
    truth = gradients(copy.deepcopy(plain).double(), x.double())
    least = 1e-7 * max(each.abs().max() for each in truth)
    found = zip(gradients(ours, x), gradients(plain, x), truth)
    for index, (mine, theirs, exact) in enumerate(found):
        own_error = (theirs - exact).abs().max()
        allowed = max(TOLERANCE * exact.abs().max(), 10 * own_error, least)
        error = (mine - exact).abs().max()
        if not error <= allowed:
            raise RuntimeError(
                f'benchmark_surgery: gradient {index} of {name} is off by {error:.1e}, {allowed:.1e} '
                'is allowed; it is not timed'
            )


def durations(runs: dict[str, Callable], args: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of each run, in turn, after two that are not timed."""
    now = CLOCKS[args.clock]
    wait = torch.cuda.synchronize if args.device.startswith('cuda') else (lambda: None)
    for run in (*runs.values(), *runs.values()):
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            wait()
            start = now()
            run()
            wait()
            times[name].append(1e3 * (now() - start))
    return times


def measure(name: str, layout: str, args: argparse.Namespace) -> list[dict]:
    """Rows of one network in one layout: one per mode, or one with the reason for none."""
    plain = SKIPPED.get((name, layout)) or build(name)
    if isinstance(plain, str):
        print(f'{name:<16} {layout:<13} {plain}')
        return [dict(network=name, layout=layout, result=plain)]
    plain = plain.to(args.device, memory_format=LAYOUTS[layout])
    x = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    x = x.contiguous(memory_format=LAYOUTS[layout])
    ours = copy.deepcopy(plain)
    done = mmlk.accelerate(ours, x)
    facts = dict(network=name, layout=layout, taken=len(done.taken), of=len(done.layers))
    if not done.taken:
        print(f'{name:<16} {layout:<13} nothing taken of {len(done.layers)} layers')
        return [dict(facts, result='nothing taken')]
    verify(name, plain, ours, x[:1])
    rows = []
    for mode, make in (('train', trainer), ('infer', inferer)):
        if args.mode not in (mode, 'both'):
            continue
        plain.train(mode == 'train')
        ours.train(mode == 'train')
        runs = {
            side: make(model, x, contextlib.nullcontext)
            for side, model in (('untouched', plain), ('accelerated', ours))
        }
        times = durations(runs, args)
        median = {side: statistics.median(each) for side, each in times.items()}
        rows.append(
            dict(
                facts,
                mode=mode,
                median_ms=median,
                min_ms={side: min(each) for side, each in times.items()},
                gain=median['untouched'] / median['accelerated'],
            )
        )
        print(
            f'{name:<16} {layout:<13} {mode:<6} {median["untouched"]:8.1f} -> '
            f'{median["accelerated"]:8.1f} ms  {rows[-1]["gain"]:5.2f}x  '
            f'{facts["taken"]} of {facts["of"]} layers'
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    about = device()
    print('  '.join(f'{key} {value}' for key, value in about.items()))
    rows = [
        row for name in args.only for layout in args.layout for row in measure(name, layout, args)
    ]
    if args.out:
        kept = {key: value for key, value in vars(args).items() if key != 'out'}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(dict(device=about, settings=kept, rows=rows), indent=1))
        print(f'written to {args.out}')


if __name__ == '__main__':
    main()
