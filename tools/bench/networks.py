"""What ``benchmark_models.py`` times: ours and the rival, with equal weights, in every form."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from benchmark_ops import LAYOUTS  # noqa: E402
from rival_backbones import authors  # noqa: E402

from mmlk.benchmark.forms import compiled, peak_of_process, reset_peak, show_layers  # noqa: E402
from mmlk.benchmark.process import Timed  # noqa: E402

AUTHORS = 'authors'
"""The rival that ``rival_backbones.authors`` makes of our network."""


@dataclass(frozen=True)
class Case:
    """One network at one size, in training or inference.

    Attributes:
        model: Backbone type, config file, or ``module:factory``.
        shape: Images, channels, height, width.
        train: Training steps, else inference.
        arch: Of the backbone type.
        kwargs: Further arguments of the backbone type, or all of the factory.
        rival: ``module:factory``, ``authors``, or None.
        rival_kwargs: Arguments of the rival's factory.
        deploy: Fold for inference, ours and a rival that can.
        threads: Of every side.
        device: ``cpu`` or a GPU.
        amp: dtype of autocast by name, or None.
    """

    model: str
    shape: tuple[int, int, int, int]
    train: bool
    arch: str | dict = 'tiny'
    kwargs: dict = field(default_factory=dict)
    rival: str | None = None
    rival_kwargs: dict = field(default_factory=dict)
    deploy: bool = False
    threads: int = 1
    device: str = 'cpu'
    amp: str | None = None


def build(case: Case) -> nn.Module:
    """Our network: a registered backbone, the model of a config, or a factory's.

    Nothing in it draws random numbers in training, and layer scales are so large that a fault in a block
    shows in the outputs.
    """
    torch.manual_seed(0)
    network = _ours(case)
    show_layers(network)
    return network


def _ours(case: Case) -> nn.Module:
    if ':' in case.model:
        return _made(case.model, case.kwargs)
    import mmlk.backbones  # noqa: F401  fills the registry
    from mmlk.registry import MODELS

    if not case.model.endswith('.py'):
        name = f'mmlk.{case.model.removeprefix("mmlk.")}'
        return MODELS.build(dict(dict(type=name, arch=case.arch), **case.kwargs))
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS as ROOT
    from mmengine.registry import init_default_scope

    config = Config.fromfile(case.model)
    init_default_scope(config.default_scope)
    config.model.backbone.pop('init_cfg', None)
    config.model.backbone.drop_path_rate = 0.0
    model = revert_sync_batchnorm(ROOT.build(config.model))
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    return model


def rival(case: Case) -> nn.Module:
    """The network that ours is compared with; of a config, the same heads on the rival's backbone."""
    if case.rival != AUTHORS:
        return _made(case.rival, case.rival_kwargs)
    model = build(case)
    if not hasattr(model, 'backbone'):
        return authors(model)
    model.backbone = authors(model.backbone)
    return model


def _made(name: str, options: dict) -> nn.Module:
    """What ``module:factory`` makes of the options."""
    module, _, factory = name.partition(':')
    return getattr(importlib.import_module(module), factory)(**options)


def adopt(network: nn.Module, values: list[Tensor]) -> nn.Module:
    """``network`` with the values of another one's state dict, in the same order.

    Raises:
        RuntimeError: If shapes differ.
    """
    state = network.state_dict()
    if [value.shape for value in state.values()] != [value.shape for value in values]:
        raise RuntimeError('the rival has other parameters')
    network.load_state_dict(dict(zip(state, values)))
    return network


def maps(output) -> list[Tensor]:
    """All tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = output.values()
    return [each for part in output for each in maps(part)]


def trainer(model: nn.Module, x: Tensor, autocast: Callable) -> Callable[[], Tensor]:
    """One step: forward, loss, backward, update.

    The loss of a segmentor is that of its heads for random labels; of others a sum over all outputs, of
    their positive values, as the mean square of all values behind a batch norm would be a constant.
    """
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    loss_of = _loss_of_segmentor(model, x) if hasattr(model, 'decode_head') else _square_of(model)

    def run() -> Tensor:
        optimizer.zero_grad()
        with autocast():
            loss = loss_of(x)
        loss.backward()
        optimizer.step()
        return loss

    return run


def _square_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: sum(each.float().relu().square().mean() for each in maps(model(x)))


def _loss_of_segmentor(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    classes = model.decode_head.num_classes
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (len(x), 1, *x.shape[2:]), generator=generator).to(x.device)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=each)) for each in labels]
    return lambda x: model.parse_losses(model(x, samples, mode='loss'))[0]


def inferer(model: nn.Module, x: Tensor, autocast: Callable) -> Callable[[], object]:
    model.eval()

    def run():
        with torch.inference_mode(), autocast():
            return model(x)

    return run


def timed(case: Case, side: str, form: str, layout: str, weights: Path, image: np.ndarray) -> Timed:
    """One side of a case, for a process of its own.

    Args:
        case: What is timed.
        side: ``ours`` or ``rival``.
        form: ``eager`` or ``compile``, which in inference takes weights for constants.
        layout: Of weights and images.
        weights: File of our values, in the order of the state dict.
        image: (N, C, H, W), float32.

    Returns:
        In inference the outputs are those of the network; in training the loss of a first step, the
        gradient of the layer that sees the image, and the norms of all gradients. The peak leaves out
        what the process held before the network was built, and what building and compiling took.
    """
    torch.set_num_threads(case.threads)
    before = reset_peak()
    network = build(case) if side == 'ours' else rival(case)
    adopt(network, torch.load(weights, weights_only=True))
    if case.deploy and not case.train:
        network = folded(network, side)
    network = network.to(case.device, memory_format=LAYOUTS[layout])
    x = torch.from_numpy(image).to(case.device).contiguous(memory_format=LAYOUTS[layout])
    autocast = contextlib.nullcontext
    if case.amp:
        autocast = partial(torch.autocast, case.device, getattr(torch, case.amp))
    call = compiled(network) if form == 'compile' else network
    run = (trainer if case.train else inferer)(call, x, autocast)
    if case.train:
        outputs = partial(_first_step, run, network, x.shape[1])
    else:
        outputs = lambda: [each.float().cpu().numpy() for each in maps(run())]  # noqa: E731
    cuda = torch.device(case.device).type == 'cuda'

    def step() -> None:
        run()
        if cuda:
            torch.cuda.synchronize()

    def outputs_then_forget() -> list[np.ndarray]:
        found = outputs()
        if not cuda:
            reset_peak()
        return found

    def peak() -> float:
        if cuda:
            return torch.cuda.max_memory_allocated(case.device) / 2**20
        return peak_of_process() - before

    return Timed(outputs_then_forget, step, peak, warms=not case.train)


def _first_step(run: Callable[[], Tensor], network: nn.Module, channels: int) -> list[np.ndarray]:
    loss = run()
    gradients = [each.grad for each in network.parameters() if each.grad is not None]
    first = next(each for each in gradients if each.ndim == 4 and each.shape[1] == channels)
    norms = torch.stack([each.norm() for each in gradients])
    return [each.detach().float().cpu().numpy() for each in (loss, first, norms)]


def folded(network: nn.Module, side: str) -> nn.Module:
    """The network as prediction runs it, or a rival as its authors do."""
    if side == 'ours':
        from mmlk.models.folding import folded_copy

        return folded_copy(network)[0]
    part = getattr(network, 'backbone', network)
    if hasattr(part, 'fuse'):
        part.fuse()
    return network.eval()


def exported(case: Case, network: nn.Module, path: Path) -> None:
    """Write our folded network as the ONNX file of any size that ``mmlk export`` makes.

    Raises:
        ValueError, RuntimeError: If it cannot be exported.
    """
    from mmlk.export.graph import Graph
    from mmlk.export.write import export_model
    from mmlk.networks.base import Network

    if not isinstance(network, Network) and not hasattr(network, 'decode_head'):
        raise ValueError('only backbones and segmentors can be exported')
    model = SimpleNamespace(backbone=network) if isinstance(network, Network) else network
    settings = SimpleNamespace(model=dict(data_preprocessor=dict(bgr_to_rgb=True)))
    part = 'backbone' if isinstance(network, Network) else 'segmentor'
    graph = Graph(model, settings, part).eval()
    export_model(graph, path, {}, sizes=(case.shape[2:],))
