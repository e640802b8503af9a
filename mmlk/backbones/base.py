"""The contract that all backbones share.

A family declares its variants, builds its stem and stages under the authors' parameter names, and
says how it folds. Everything an OpenMMLab user expects beside that lives here: selecting outputs,
freezing, recomputation, output norms, loading weights loudly, and the description that neck configs,
layer-wise learning rates and tests read.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmlk.checkpoints.load import convert_in_place, load_into
from mmlk.layers import recompute


class LayerLocation(NamedTuple):
    """Where a parameter sits: ``kind`` is ``stem``, ``downsample``, ``block`` or ``norm``.

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


class Backbone(BaseModule):
    """Four-stage convolutional backbone returning maps at falling resolution.

    A subclass sets the class attributes, builds ``stem`` and ``stages`` (or overrides
    :meth:`stem_modules` and :meth:`stage_modules`), and calls :meth:`_finish` last.

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
        init_cfg: MMEngine initialisation; ``dict(type='Pretrained', checkpoint=path_or_url)`` accepts
            any published file of the family and raises where the trunk is not covered.

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
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg=init_cfg)
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
        self.in_channels = in_channels
        self.dims = tuple(dims)
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.deployed = False
        self._output_norm = output_norm is not None
        for i in out_indices if output_norm else ():
            self.add_module(f'norm{i}', output_norm(dims[i]))
        self._register_load_state_dict_pre_hook(_check_loaded_keys, with_module=True)
        if self._pretrained():
            self.register_forward_pre_hook(_warn_of_random_weights)

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
        settings = copy.deepcopy(next(iter(cls.arch_settings.values())))
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

    def stem_modules(self) -> list[nn.Module]:
        """Modules from the image to the first stage."""
        return [self.stem]

    def stage_modules(self, stage: int) -> list[nn.Module]:
        """Modules of one stage, its downsampling included, in forward order."""
        return [self.stages[stage]]

    def stage_blocks(self, stage: int) -> Sequence[nn.Module]:
        """Blocks of one stage; each is recomputed as a whole under ``with_cp``."""
        return self.stages[stage].blocks

    def stage_downsample(self, stage: int) -> nn.Module:
        """Downsampling before the blocks of one stage."""
        return self.stages[stage].downsample

    def _fold(self) -> None:
        """Replace, in place, every group of modules that a simpler one equals in eval mode."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Freeze what the arguments ask for; call at the end of the constructor."""
        for module in self._frozen_modules():
            module.requires_grad_(False)
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

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps (N, dims[i], ceil or floor of H / strides[i], ...) for each of ``out_indices``.

        Args:
            x: Images (N, in_channels, H, W), any H and W of at least ``min_input_size``.

        Raises:
            ValueError: If the input has another rank or channel count, or is too small.
        """
        self._check_input(x)
        for module in self.stem_modules():
            x = module(x)
        outputs = []
        for stage in range(self.out_indices[-1] + 1):
            x = self.forward_stage(stage, x)
            if stage in self.out_indices:
                outputs.append(getattr(self, f'norm{stage}')(x) if self._output_norm else x)
        return tuple(outputs)

    def forward_stage(self, stage: int, x: torch.Tensor) -> torch.Tensor:
        """Downsampling and blocks of one stage."""
        x = self.stage_downsample(stage)(x)
        for block in self.stage_blocks(stage):
            x = recompute(block, x) if self.with_cp and self.training else block(x)
        return x

    def _check_input(self, x: torch.Tensor) -> None:
        name = type(self).__name__
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'{name}: input {tuple(x.shape)} is not (N, {self.in_channels}, H, W)')
        if min(x.shape[2:]) < self.min_input_size:
            raise ValueError(
                f'{name}: image {tuple(x.shape[2:])} is smaller than '
                f'{self.min_input_size} x {self.min_input_size}; pad or resize it'
            )

    def train(self, mode: bool = True) -> Backbone:
        """Switch modes, leaving frozen parts and, under ``norm_eval``, all batch norms in eval."""
        super().train(mode)
        if mode:
            for module in self._frozen_modules():
                module.eval()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self

    def _pretrained(self) -> list[dict]:
        """The ``Pretrained`` entries of ``init_cfg``."""
        configs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg or {}]
        return [cfg for cfg in configs if cfg.get('type') == 'Pretrained']

    def init_weights(self) -> None:
        """Apply ``init_cfg``; ``Pretrained`` entries go through the loader that checks coverage."""
        pretrained = self._pretrained()
        if self.is_init or not pretrained:
            super().init_weights()
            return
        kept = self.init_cfg
        configs = kept if isinstance(kept, list) else [kept]
        self.init_cfg = [cfg for cfg in configs if cfg not in pretrained]
        super().init_weights()
        self.init_cfg = kept
        for cfg in pretrained:
            options = {
                key: value for key, value in cfg.items() if key not in ('type', 'checkpoint')
            }
            load_into(
                self,
                self.family,
                cfg['checkpoint'],
                logger=MMLogger.get_current_instance(),
                **options,
            )

    def _dump_init_info(self) -> None:
        """One line on how many parameters were initialised how, where MMEngine writes two for each.

        Only for a backbone that is initialised by itself; a model around it writes its own.
        """
        counts = Counter(
            ' '.join(self._params_init_info[parameter]['init_info'].split())
            for parameter in self.parameters()
        )
        MMLogger.get_current_instance().info(
            f'{type(self).__name__}: '
            + '; '.join(f'{count} parameters: {how}' for how, count in counts.items())
        )

    @torch.no_grad()
    def switch_to_deploy(self) -> Backbone:
        """Fold for inference, in place, and return the module in eval mode.

        The result computes what the module computed in eval mode, up to rounding, with fewer
        operations. It is not meant for further training, and checkpoints of the unfolded network no
        longer fit it. Calling it again changes nothing.
        """
        if not self.deployed:
            self.eval()
            self._fold()
            self.deployed = True
        return self


def _check_loaded_keys(module: Backbone, state_dict: dict, prefix: str, metadata: dict, *_) -> None:
    """Before any load: map foreign keys in place, and raise if the trunk would stay uncovered.

    Values are changed, where a family's published files need it, in foreign state dicts alone: one
    that carries this class's version was written by it and comes back bit by bit.
    """
    if metadata.get('absent'):
        return
    _end_warning(module)
    if module.deployed:
        return
    own = metadata.get('version', 0) >= Backbone._version
    report = convert_in_place(
        module.family,
        state_dict,
        prefix,
        module.state_dict(),
        {} if own else {**module.checkpoint_options, 'lenient': True},
    ).raise_if_uncovered()
    if report.dropped or report.notes:
        MMLogger.get_current_instance().info(report.summary())


def _warn_of_random_weights(module: Backbone, _) -> None:
    """At the first forward pass: weights that ``init_cfg`` names have not been loaded."""
    if not module.is_init:
        warnings.warn(
            f'{type(module).__name__}: init_cfg names weights, but neither init_weights() nor '
            'load_state_dict() was called: this computes with random weights',
            stacklevel=3,
        )
    _end_warning(module)


def _end_warning(module: Backbone) -> None:
    """Remove the check: it speaks once, and not after a load."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is _warn_of_random_weights:
            del module._forward_pre_hooks[key]
