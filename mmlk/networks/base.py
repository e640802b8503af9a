"""The contract that all networks share.

A family declares its variants, builds its stem and stages under the authors' parameter names, and
says how it folds. Everything else that dense prediction needs is here: selecting outputs, freezing,
recomputation, output norms, the memory layout, loading weights loudly, and the description that neck
configs, layer-wise learning rates and tests read. Torch is all that is needed; `mmlk.backbones` adds
MMEngine's registry, ``init_cfg`` and logger.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmlk.checkpoints.load import convert_in_place, load_into
from mmlk.checkpoints.report import Report
from mmlk.layers import channels_last_gradient, fold_conv_norms, recompute
from mmlk.networks.plans import Plans
from mmlk.ops import contiguous_map, dispatch
from mmlk.ops.maps import layout
from mmlk.ops.modules import NotScriptable


class LayerLocation(NamedTuple):
    """Where a parameter belongs: ``kind`` is ``stem``, ``downsample``, ``block`` or ``norm``.

    ``stage`` counts from 0; ``block`` counts within the stage and is 0 for other kinds.
    """

    kind: str
    stage: int
    block: int


_LOCATIONS = (
    ('stem', re.compile(r'(?:stem|downsample_layers\.0)\.')),
    ('downsample', re.compile(r'downsample_layers\.(?P<stage>[1-9])\.')),
    ('downsample', re.compile(r'stages\.(?P<stage>\d)\.downsample\.')),
    ('block', re.compile(r'stages\.(?P<stage>\d)\.(?:blocks\.)?(?P<block>\d+)\.')),
    ('norm', re.compile(r'norm(?P<stage>\d)\.')),
)


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, recomputes: bool) -> Tensor:
    """The blocks one after the other, each recomputed in the backward pass if ``recomputes``."""
    for block in blocks:
        x = recompute(block, x) if recomputes else block(x)
    return x


def folded(module: nn.Module) -> nn.Module:
    """What computes the same as ``module`` in eval mode, with fewer operations if there is a way.

    ``switch_to_deploy()`` of other people's layers and ``fold()`` of ours return what stands in their
    place, or nothing if they change in place. In layers with neither, every `ConvNorm` is folded.
    """
    for name in ('switch_to_deploy', 'fold'):
        if hasattr(module, name):
            found = getattr(module, name)()
            return module if found is None else found
    fold_conv_norms(module)
    return module


class Stage(nn.Module):
    """Downsampling, then blocks.

    Args:
        downsample: ``nn.Identity`` in the first stage.
        blocks: Each maps (N, C, H, W) to the same shape.
    """

    def __init__(self, downsample: nn.Module, blocks: nn.Module):
        super().__init__()
        self.downsample = downsample
        self.blocks = blocks
        self.recomputes = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        return run_blocks(self.blocks, x, self.recomputes and self.training)

    def fold(self) -> None:
        """Fold the downsampling and every block."""
        self.downsample = folded(self.downsample)
        for block in self.blocks:
            block.fold()


class Network(NotScriptable, nn.Module):
    """Four-stage convolutional network returning maps at falling resolution.

    A subclass sets the class attributes, builds ``stem`` and ``stages`` (or overrides
    :meth:`stem_modules`, :meth:`stage_modules` and :meth:`run_stage`), and calls :meth:`_finish` last.

    Args:
        dims: Channels of the four stages.
        in_channels: Channels of the image.
        out_indices: Stages whose outputs are returned, in rising order.
        output_norm: Makes the norm of stage output ``i`` from its channels, or None for raw outputs.
            The norms are ``norm0`` .. ``norm3``; the next stage gets the map before the norm.
        frozen_stages: -1 freezes nothing, 0 the stem, ``i`` the stem and the first ``i`` stages with
            their downsampling. Output norms are new in the dense network and are never frozen. Stages
            behind the last of ``out_indices`` are always frozen: no gradient reaches them.
        norm_eval: Keep every batch norm in eval mode while training.
        with_cp: Recompute each block in the backward pass to save memory.

    Raises:
        ValueError: If an argument is out of range; the message names the accepted values.
    """

    arch_settings: ClassVar[Mapping[str, dict]]
    """Variants by name."""
    family: ClassVar[str]
    """Name under which ``mmlk.checkpoints`` knows the family's key maps."""
    checkpoint_options: Mapping = {}
    """What converting the family's files needs to know beside keys and shapes."""
    required_hooks: ClassVar[Mapping[str, dict]] = {}
    """Hooks without which training goes wrong, by their name in ``default_hooks``; the train tool
    adds those that a config lacks."""
    strides: ClassVar[Sequence[int]] = (4, 8, 16, 32)
    """Reduction of each stage's output."""
    min_input_size: ClassVar[int] = 32
    """Smallest height and width that leave every stage a pixel."""
    _version = 2  # in the metadata of every state dict; other people's files have 1 or none

    def __init__(
        self,
        dims: Sequence[int],
        *,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        output_norm: Callable[[int], nn.Module] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
    ):
        super().__init__()
        name, stages = type(self).__name__, len(dims)
        out_indices = tuple(out_indices)
        if (
            not out_indices
            or any(i not in range(stages) for i in out_indices)
            or list(out_indices) != sorted(set(out_indices))
        ):
            raise ValueError(
                f'{name}: out_indices {out_indices} must be rising, distinct and '
                f'within 0..{stages - 1}'
            )
        if frozen_stages not in range(-1, stages + 1):
            raise ValueError(f'{name}: frozen_stages {frozen_stages} must be within -1..{stages}')
        if in_channels < 1:
            raise ValueError(f'{name}: in_channels {in_channels} must be at least 1')
        self.in_channels = in_channels
        self.dims = tuple(dims)
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.deployed = False
        self._plans = Plans()
        self._output_norm = output_norm is not None
        for i in out_indices if output_norm else ():
            self.add_module(f'norm{i}', output_norm(dims[i]))
        self._register_load_state_dict_pre_hook(_check_loaded_keys, with_module=True)

    @classmethod
    def resolve_arch(cls, arch: str | Mapping) -> dict:
        """Settings of a variant given by name, or by a dict with the same keys.

        A dict may leave out what every variant of the family has in common.

        Raises:
            ValueError: If the name or a key is unknown, or ``depths`` or ``dims`` is missing.
        """
        if isinstance(arch, str):
            if arch not in cls.arch_settings:
                raise ValueError(
                    f'{cls.__name__}: arch {arch!r} is not one of {", ".join(cls.arch_settings)}'
                )
            return copy.deepcopy(cls.arch_settings[arch])
        settings = cls.common_settings()
        unknown, absent = set(arch) - set(settings), {'depths', 'dims'} - set(arch)
        if unknown or absent:
            raise ValueError(
                f'{cls.__name__}: arch dict has unknown keys {sorted(unknown)} and lacks '
                f'{sorted(absent)}; accepted: {sorted(settings)}'
            )
        settings.update(arch)
        if len(settings['depths']) != len(settings['dims']):
            raise ValueError(
                f'{cls.__name__}: depths {settings["depths"]} and dims '
                f'{settings["dims"]} differ in length'
            )
        return settings

    @classmethod
    def common_settings(cls) -> dict:
        """Settings that an arch dict need not name; ``depths`` and ``dims`` are placeholders."""
        return copy.deepcopy(next(iter(cls.arch_settings.values())))

    def stem_modules(self) -> list[nn.Module]:
        """Modules from the image to the first stage."""
        return [self.stem]

    def stage_modules(self, stage: int) -> list[nn.Module]:
        """Modules of one stage, its downsampling included, in forward order."""
        return [self.stages[stage]]

    def _fold(self) -> None:
        """Replace, in place, every group of modules that a simpler one equals in eval mode."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Freeze what the arguments ask for; call at the end of the constructor."""
        for module in self._frozen_modules():
            module.requires_grad_(False)
        for stage in self.stages:
            stage.recomputes = self.with_cp
        self.train(self.training)

    def _frozen_modules(self) -> list[nn.Module]:
        """What the arguments freeze, and the stages behind the last output, which cannot learn."""
        frozen = [*range(self.frozen_stages), *range(self.out_indices[-1] + 1, len(self.dims))]
        stem = self.stem_modules() if self.frozen_stages >= 0 else []
        return [*stem, *(module for i in frozen for module in self.stage_modules(i))]

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the returned maps."""
        return tuple(self.dims[i] for i in self.out_indices)

    @property
    def out_strides(self) -> tuple[int, ...]:
        """Strides of the returned maps."""
        return tuple(self.strides[i] for i in self.out_indices)

    @property
    def feature_info(self) -> list[dict]:
        """One entry per stage: ``num_chs``, ``reduction`` and ``module``, as timm describes features."""
        return [
            dict(index=i, num_chs=dim, reduction=stride, module=f'stages.{i}')
            for i, (dim, stride) in enumerate(zip(self.dims, self.strides, strict=True))
        ]

    def layer_location(self, name: str) -> LayerLocation:
        """Location of the parameter ``name`` (relative to the backbone), for layer-wise settings.

        Raises:
            ValueError: If no part of the backbone owns such a name.
        """
        for kind, pattern in _LOCATIONS:
            found = pattern.match(name)
            if found:
                groups = found.groupdict()
                return LayerLocation(kind, int(groups.get('stage', 0)), int(groups.get('block', 0)))
        raise ValueError(f'{type(self).__name__}: parameter {name!r} belongs to no stage')

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps (N, dims[i], ceil or floor of H / strides[i], ...) for each of ``out_indices``.

        On a CPU everything is computed channels-last, where the pixels of a map are the rows of a matrix
        and no layer needs a transposition. Maps, and gradients on their way in, take the layout of the
        image, which is the one that heads were written for.

        Args:
            x: Images (N, in_channels, H, W), any H and W of at least ``min_input_size``.

        Raises:
            ValueError: If the input has another rank or channel count, or is too small.
        """
        self._check_input(x)
        if self.deployed and not torch.compiler.is_compiling():
            return self._plans.run(self, x, self._compute)
        return self._compute(x)

    def _compute(self, x: Tensor) -> tuple[Tensor, ...]:
        form, turns = layout(x), dispatch.refusal_for_device(x, 'cpu') is None
        if turns:
            x = contiguous_map(x, torch.channels_last)
        for module in self.stem_modules():
            x = module(x)
        outputs = []
        for stage in range(self.out_indices[-1] + 1):
            x = self.run_stage(stage, x)
            if stage in self.out_indices:
                y = getattr(self, f'norm{stage}')(x) if self._output_norm else x
                if turns:
                    y = contiguous_map(channels_last_gradient(y), form)
                outputs.append(y)
        return tuple(outputs)

    def run_stage(self, stage: int, x: Tensor) -> Tensor:
        """Downsampling and blocks of one stage, called as the modules that they are."""
        for module in self.stage_modules(stage):
            x = module(x)
        return x

    def _check_input(self, x: Tensor) -> None:
        name = type(self).__name__
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'{name}: input {tuple(x.shape)} is not (N, {self.in_channels}, H, W)')
        if min(x.shape[2:]) < self.min_input_size:
            raise ValueError(
                f'{name}: image {tuple(x.shape[2:])} is smaller than '
                f'{self.min_input_size} x {self.min_input_size}; pad or resize it'
            )

    def train(self, mode: bool = True) -> Network:
        """Switch modes, leaving frozen parts and, under ``norm_eval``, all batch norms in eval."""
        self._plans.clear()
        super().train(mode)
        if mode:
            for module in self._frozen_modules():
                module.eval()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Network:
        self._plans.clear()  # they hold memory of the device that is left
        return super()._apply(fn, recurse)

    def explain_plan(self, x: Tensor) -> str:
        """Say whether the next pass is repeated from a plan, without Python, and why not.

        A folded network that runs a second time on a CPU on images of one form records the pass, and
        repeats it from then on. See the page on deployment.

        Args:
            x: Images (N, in_channels, H, W), as `forward` gets them, in the mode of gradients that it is
                called in.

        Returns:
            ``used (...)``, ``not used yet, ...`` or ``not used, <reason>``.
        """
        if not self.deployed:
            return 'not used, the network is not folded (switch_to_deploy)'
        return self._plans.explain(self, x)

    def load_pretrained(self, source: str | PathLike, **options: Any) -> Report:
        """Load any published file of the family, as `mmlk.checkpoints.load_into` does.

        Args:
            source: Path, URL, or ``mmlk://<name of the zoo>``.
            options: Further arguments of `mmlk.checkpoints.load_into`.

        Returns:
            What was matched, missing and dropped.

        Raises:
            ValueError: If the file does not cover the network, with the likely cause.
        """
        return load_into(self, self.family, source, logger=self._logger(), **options)

    def _logger(self) -> logging.Logger:
        return logging.getLogger('mmlk')

    @torch.no_grad()
    def switch_to_deploy(self) -> Network:
        """Fold for inference, in place, and return the module in eval mode.

        The result computes what the module computed in eval mode, up to rounding, with fewer
        operations. It is not meant for further training, and checkpoints of the unfolded network no
        longer fit it. Calling it again changes nothing.
        """
        if not self.deployed:
            self.eval()
            self._fold()
            self.eval()  # modules that folding made
            self.deployed = True
        return self


def _check_loaded_keys(
    module: Network, state_dict: dict, prefix: str, metadata: dict, *_: Any
) -> None:
    """Before any load: map foreign keys in place, and raise if the trunk would stay uncovered.

    Values are changed, where a family's published files need it, in foreign state dicts alone: one
    that carries this class's version was written by it and comes back bit by bit.
    """
    if metadata.get('absent'):
        return
    if module.deployed:
        return
    own = metadata.get('version', 0) >= Network._version
    report = convert_in_place(
        module.family,
        state_dict,
        prefix,
        module.state_dict(),
        {} if own else {**module.checkpoint_options, 'lenient': True},
    ).raise_if_uncovered()
    if report.dropped or report.notes:
        module._logger().info(report.summary())
