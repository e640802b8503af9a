"""Images per second of a backbone or of a whole config, next to a rival, in both memory layouts.

    python tools/bench/benchmark_models.py InceptionNeXt --arch tiny --input 2x3x160x160 \\
        --kwargs '{"output_norm": false}' \\
        --rival timm:create_model \\
        --rival-kwargs '{"model_name": "inception_next_tiny", "features_only": true}'
    python tools/bench/benchmark_models.py configs/upernet_inceptionnext_t_ade20k.py --input 1x3x512x512

Where the rival's state has the same shapes in the same order it gets our weights, and its outputs
must agree before anything is timed. The contestants run in turn within one process.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmark_ops import CLOCKS, LAYOUTS, device  # noqa: E402

TOLERANCE = 1e-3  # of the largest magnitude, float32, over a whole network


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'model', help="backbone type ('InceptionNeXt'), config file, or 'module:factory'"
    )
    parser.add_argument('--arch', default='tiny', help='arch of the backbone type')
    parser.add_argument(
        '--kwargs', type=json.loads, default={}, help='further arguments of the backbone type, JSON'
    )
    parser.add_argument('--input', default='2x3x160x160', help='batch x channels x height x width')
    parser.add_argument('--mode', choices=('train', 'infer', 'both'), default='both')
    parser.add_argument('--layout', choices=LAYOUTS, nargs='+', default=list(LAYOUTS))
    parser.add_argument('--rival', help="'module:factory' that builds a network to compare with")
    parser.add_argument('--rival-kwargs', type=json.loads, default={}, help='its arguments, JSON')
    parser.add_argument(
        '--apart',
        action='store_true',
        help='time the rival in a process of its own, as its users run it: what this '
        'package sets for a process (the C library keeps freed memory) does not '
        'reach it',
    )
    parser.add_argument('--deploy', action='store_true', help='time our folded form in inference')
    parser.add_argument('--compile', action='store_true', help='time under torch.compile')
    parser.add_argument('--amp', choices=('bfloat16', 'float16'), help='autocast dtype')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument(
        '--clock',
        choices=CLOCKS,
        default='wall',
        help="'cpu' is processor time, for a busy machine and one thread",
    )
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--out', type=Path, help='write all numbers to this JSON file')
    return parser.parse_args(arguments)


def build(args: argparse.Namespace) -> nn.Module:
    """The network of ``args.model``: a registered backbone, the model of a config, or a factory's."""
    if ':' in args.model:
        return _made(args.model, args.kwargs)
    import mmlk.backbones  # noqa: F401  fills the registry
    from mmlk.registry import MODELS

    if not args.model.endswith('.py'):
        name = f'mmlk.{args.model.removeprefix("mmlk.")}'
        return MODELS.build(dict(type=name, arch=args.arch, **args.kwargs))
    from mmengine.config import Config
    from mmengine.registry import MODELS as ROOT
    from mmengine.registry import init_default_scope

    config = Config.fromfile(args.model)
    init_default_scope(config.default_scope)
    config.model.backbone.pop('init_cfg', None)
    return ROOT.build(config.model)


def rival(args: argparse.Namespace) -> nn.Module:
    return _made(args.rival, args.rival_kwargs)


def _made(name: str, options: dict) -> nn.Module:
    """What ``module:factory`` makes of the options."""
    module, _, factory = name.partition(':')
    return getattr(importlib.import_module(module), factory)(**options)


def maps(output) -> list[Tensor]:
    """All tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = output.values()
    return [each for part in output for each in maps(part)]


def agree(
    ours: nn.Module, theirs: nn.Module, x: Tensor, deploy: bool = False, required: bool = False
) -> str:
    """Give ``theirs`` our weights and compare outputs, also of our folded form if it will be timed.

    Args:
        ours, theirs: Networks on the CPU; both are changed.
        x: Images.
        deploy: Compare our folded form as well, and that of a rival which has one.
        required: Take nothing that cannot be compared.

    Returns:
        A sentence on what was found.

    Raises:
        RuntimeError: if the outputs of equal weights differ, or cannot be compared although required.
    """
    mine, other = ours.state_dict(), theirs.state_dict()
    if [value.shape for value in mine.values()] != [value.shape for value in other.values()]:
        if required:
            raise RuntimeError('benchmark_models: the rival has other parameters; nothing is timed')
        return 'rival has other parameters: outputs not compared'
    theirs.load_state_dict(dict(zip(other, mine.values())))
    with torch.no_grad():
        results = {'output': maps(ours.eval()(x))}
        if deploy:
            getattr(ours, 'backbone', ours).switch_to_deploy()
            results['folded output'] = maps(ours(x))
        want = maps(theirs.eval()(x))
        if deploy and hasattr(theirs, 'fuse'):
            results['output of the fused rival'] = maps(theirs.fuse()(x))
    for name, got in results.items():
        for index, (a, b) in enumerate(zip(got, want)):
            error = ((a - b).abs().max() / b.abs().max()).item()
            if not error <= TOLERANCE:
                raise RuntimeError(
                    f'benchmark_models: {name} {index} differs from the rival by '
                    f'{error:.1e} with equal weights; nothing is timed'
                )
    return f'outputs agree with the rival (last one to {error:.0e})'


def saved_megabytes(function: Callable[[], object]) -> float:
    """What one training step keeps for its backward pass, each storage counted once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(storages.values()) / 2**20


def trainer(model: nn.Module, x: Tensor, autocast: Callable) -> Callable[[], Tensor]:
    """One step: forward, a loss over all outputs, backward, update."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def run() -> Tensor:
        optimizer.zero_grad()
        with autocast():
            loss = sum(each.float().square().mean() for each in maps(model(x)))
        loss.backward()
        optimizer.step()
        return loss

    return run


def inferer(model: nn.Module, x: Tensor, autocast: Callable) -> Callable[[], object]:
    model.eval()

    def run():
        with torch.inference_mode(), autocast():
            return model(x)

    return run


class Apart:
    """One contestant in a process of its own, which takes its steps when it is called."""

    def __init__(self, args: argparse.Namespace, train: bool, name: str, layout: str):
        context = multiprocessing.get_context('spawn')
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, args, train, name, layout), daemon=True
        )
        self._process.start()
        other.close()

    def __call__(self) -> None:
        self._pipe.send('step')
        self._pipe.recv()


def _serve(pipe: Connection, args: argparse.Namespace, train: bool, name: str, layout: str) -> None:
    torch.set_num_threads(args.threads)
    args.apart, args.layout = False, [layout]
    run = contestants(args, train, (name,))[f'{name} {layout}']
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            run()
            pipe.send('done')


def contestants(
    args: argparse.Namespace, train: bool, names: Sequence[str] = ('ours', 'rival')
) -> dict[str, Callable]:
    """Name -> one timed step, for every network and layout."""
    n, c, h, w = (int(each) for each in args.input.split('x'))
    builders = {'ours': lambda: build(args)}
    if args.rival:
        builders['rival'] = lambda: rival(args)
    runs = {}
    for layout in args.layout:
        for name, builder in builders.items():
            if name not in names:
                continue
            if name == 'rival' and args.apart:
                runs[f'{name} {layout}'] = Apart(args, train, name, layout)
                continue
            torch.manual_seed(0)
            model = builder().to(args.device, memory_format=LAYOUTS[layout])
            if name == 'ours' and args.deploy and not train:
                getattr(model, 'backbone', model).switch_to_deploy()
            elif args.deploy and not train and hasattr(model, 'fuse'):
                model.fuse()
            x = torch.randn(n, c, h, w, device=args.device).contiguous(
                memory_format=LAYOUTS[layout]
            )
            autocast = contextlib.nullcontext
            if args.amp:
                autocast = partial(torch.autocast, args.device, getattr(torch, args.amp))
            if args.compile:
                model = torch.compile(model)
            runs[f'{name} {layout}'] = (trainer if train else inferer)(model, x, autocast)
    return runs


def measure(args: argparse.Namespace, train: bool) -> dict[str, dict]:
    """Milliseconds per step of all contestants, interleaved, with progress on stderr."""
    batch = int(args.input.split('x')[0])
    runs = contestants(args, train)
    now = CLOCKS[args.clock]
    wait = torch.cuda.synchronize if args.device.startswith('cuda') else (lambda: None)
    results = {}
    for name, run in runs.items():
        run()
        saved = saved_megabytes(run) if train and not isinstance(run, Apart) else 0.0
        results[name] = {'saved_mb': saved, 'times': []}
    for index in range(args.rounds):
        for name, run in runs.items():
            wait()
            start = now()
            run()
            wait()
            results[name]['times'].append(1e3 * (now() - start))
        print(
            f'\r{"train" if train else "infer"} round {index + 1}/{args.rounds}',
            end='',
            file=sys.stderr,
            flush=True,
        )
    print(file=sys.stderr)
    for value in results.values():
        times = value.pop('times')
        value.update(
            median_ms=statistics.median(times),
            min_ms=min(times),
            quartiles_ms=statistics.quantiles(times, n=4)[::2],
            images_per_second=1e3 * batch / statistics.median(times),
        )
    return results


def report(mode: str, results: dict[str, dict]) -> dict:
    """Print one block; the gain of our better layout over the rival's better one."""
    for name, value in results.items():
        low, high = value['quartiles_ms']
        memory = f'  {value["saved_mb"]:7.0f} MB kept for backward' if value['saved_mb'] else ''
        print(
            f'{mode:<6} {name:<22} {value["median_ms"]:8.1f} ms [{low:.1f}-{high:.1f}]  min '
            f'{value["min_ms"]:.1f}  {value["images_per_second"]:7.2f} img/s{memory}'
        )
    gains = {}
    if any(name.startswith('rival') for name in results):
        for key in ('median_ms', 'min_ms'):
            best = {
                side: min(value[key] for name, value in results.items() if side in name)
                for side in ('ours', 'rival')
            }
            gains[key] = best['rival'] / best['ours']
        print(
            f'{mode:<6} gain over the rival in its better layout: {gains["median_ms"]:.2f}x '
            f'(medians), {gains["min_ms"]:.2f}x (minima)'
        )
    return {'mode': mode, 'results': results, 'gain_over_rival': gains}


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    about = device()
    print('  '.join(f'{key} {value}' for key, value in about.items()))
    if args.rival:
        x = torch.randn([int(each) for each in args.input.split('x')])
        print(agree(build(args), rival(args), x, args.deploy))
    rows = [
        report(mode, measure(args, mode == 'train'))
        for mode in ('train', 'infer')
        if args.mode in (mode, 'both')
    ]
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {key: value for key, value in vars(args).items() if key != 'out'}
        args.out.write_text(
            json.dumps({'device': about, 'settings': settings, 'rows': rows}, indent=1)
        )
        print(f'written to {args.out}')


if __name__ == '__main__':
    main()
