"""A network assembled from parts: stem, block template, token mixers, norm, channel mixers.

What a token mixer may offer beside ``forward``, all of it optional:

- ``switch_to_deploy()``: returns what stands in its place for inference, or changes it in place;
- ``no_weight_decay``: names of its parameters that layer-wise optimizer settings do not decay;
- ``required_hooks``: hooks that the train tool adds, on its class;
- ``clamp_parameters()``: called before every forward pass in training;
- ``share_positions(owner)``: take the positions of the stage's first mixer with the same entry.

Everything else (export, recomputation, freezing, layer-wise learning rates, sparse weights) needs
nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmlk.layers import build_norm, drop_path_schedule
from mmlk.networks.base import Network, folded
from mmlk.networks.mixers import CHANNEL_MIXERS, TOKEN_MIXERS, Part, make_part, spread
from mmlk.networks.templates import STEMS, TEMPLATES, ConvNeXtStage, Template
from mmlk.ops import DCLSDepthwiseConv2d, compat, library


class Assembled(Network):
    """Four stages of blocks whose parts are entries; see `Network` for what does not depend on them.

    Args:
        depths: Blocks of the stages.
        dims: Channels of the stages.
        block: Entry of the template; its further keys are arguments of the template.
        token_mixer: Entry, or a list per stage or of lists per block; called with the channels.
        stem: Entry; called with the channels of image and first stage; None takes the template's.
        channel_mixer: As ``token_mixer``; None takes the template's.
        norm_cfg: Norm of stem, downsampling, blocks, channel mixers and outputs; None takes the
            template's.
        layer_scale_init: Initial layer scale; 0 leaves it out, None takes the template's.
        drop_path_rate: Stochastic-depth rate, of the last block where the template has it rise from 0.
        share_positions: Whether token mixers of a stage that have equal entries share learnt positions.
        output_norm: Put ``norm0`` .. ``norm3`` on the outputs.
        in_channels: Channels of the image.
        options: Further arguments of `Network`.

    Raises:
        ValueError: If a part is unknown or does not fit, with the accepted ones.
    """

    no_weight_decay: Sequence[str] = ()
    """Parameters that layer-wise optimizer settings do not decay, beside biases and norms."""

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        *,
        block: Any,
        token_mixer: Any,
        layer_scale_init: float | None = None,
        stem: Any = None,
        channel_mixer: Any = None,
        norm_cfg: dict | None = None,
        drop_path_rate: float = 0.0,
        share_positions: bool = True,
        output_norm: bool = True,
        in_channels: int = 3,
        **options: Any,
    ):
        name = type(self).__name__
        template: Template = make_part(f'{name}: block', block, (norm_cfg,), TEMPLATES, None)
        norm_cfg = template.norm_cfg
        if layer_scale_init is None:
            layer_scale_init = template.layer_scale_init
        super().__init__(
            dims,
            in_channels=in_channels,
            output_norm=(lambda width: build_norm(norm_cfg, width)) if output_norm else None,
            **options,
        )
        self.strides = template.strides
        self.share_positions = share_positions
        stem = make_part(
            f'{name}: stem',
            template.default_stem if stem is None else stem,
            (in_channels, dims[0]),
            STEMS,
            self.find,
            norm_cfg=norm_cfg,
        )
        mixers = spread(f'{name}: token_mixer', token_mixer, depths)
        if channel_mixer is None:
            channel_mixer = template.default_channel_mixer
        channel_mixers = spread(f'{name}: channel_mixer', channel_mixer, depths)
        rates = (
            [[drop_path_rate] * depth for depth in depths]
            if template.constant_drop_path
            else drop_path_schedule(drop_path_rate, depths)
        )

        def make_mixer(stage: int, block: int) -> Callable[[int], nn.Module]:
            return lambda channels: make_part(
                f'{name}: channel_mixer of stage {stage}, block {block} ({channels} channels)',
                channel_mixers[stage][block],
                (channels,),
                CHANNEL_MIXERS,
                self.find,
                norm_cfg=norm_cfg,
            )

        def make_block(stage: int, block: int) -> nn.Module:
            role = f'{name}: token_mixer of stage {stage}, block {block} ({dims[stage]} channels)'
            return template.block(
                dims[stage],
                make_part(role, mixers[stage][block], (dims[stage],), TOKEN_MIXERS, self.find),
                make_mixer(stage, block),
                drop_path=rates[stage][block],
                layer_scale_init=layer_scale_init,
            )

        def make_blocks(stage: int) -> list[nn.Module]:
            return [make_block(stage, block) for block in range(depths[stage])]

        def make_downsample(stage: int) -> nn.Module:
            rate = (*rates[stage], 0.0)[0]
            return template.downsample(
                dims[stage - 1], dims[stage], stage, make_mixer(stage, 0), rate
            )

        self._flat, later = template.flat, range(1, len(dims))
        if self._flat:
            self.downsample_layers = nn.ModuleList([stem, *map(make_downsample, later)])
            self.stages = nn.ModuleList(ConvNeXtStage(*make_blocks(i)) for i in range(len(dims)))
        else:
            self.stem = stem
            first = template.stage(nn.Identity(), make_blocks(0))
            self.stages = nn.ModuleList(
                [first, *(template.stage(make_downsample(i), make_blocks(i)) for i in later)]
            )
        self.apply(template.init_layer)
        self.apply(template.init_positioned)
        made = self.token_mixers()
        entries = [each for stage, depth in zip(mixers, depths) for each in stage[:depth]]
        self._shared = _share(made, entries) if share_positions else []
        if self._shared:
            self._register_load_state_dict_pre_hook(_complete_positions, with_module=True)
            self._load_state_dict_pre_hooks.move_to_end(
                next(reversed(self._load_state_dict_pre_hooks)), last=False
            )
        self._clamps = any(hasattr(mixer, 'clamp_parameters') for mixer in made.values())
        self.no_weight_decay = tuple(
            f'{name}.{parameter}'
            for name, mixer in made.items()
            for parameter in getattr(mixer, 'no_weight_decay', ())
        )
        windows = {
            max(mixer.kernel_size)
            for mixer in made.values()
            if isinstance(mixer, DCLSDepthwiseConv2d)
        }
        if len(windows) == 1:  # as published; positions of files are brought inside
            self.checkpoint_options = dict(window=windows.pop(), shared_positions=share_positions)
        if not hasattr(self, 'family'):
            self.family = template.family(list(made.values()))
        self._finish()

    @staticmethod
    def find(kind: str) -> Part | None:
        """A part by a name that this package does not have; without MMEngine there is none."""
        return None

    def token_mixers(self) -> dict[str, nn.Module]:
        """The token mixer of every block, by its name in the network."""
        return {
            f'{name}.{block.mixer_name}': block.mixer
            for name, block in self.named_modules()
            if hasattr(block, 'mixer_name')
        }

    def describe(self) -> str:
        """One line per stage: stride, channels, and how many blocks have which token mixer."""
        made: dict[int, Counter] = {stage: Counter() for stage in range(len(self.dims))}
        for name, mixer in self.token_mixers().items():
            made[self.layer_location(f'{name}.').stage][
                f'{type(mixer).__name__}({mixer.extra_repr()})'
            ] += 1
        return '\n'.join(
            f'stage {stage}, stride {self.strides[stage]}, {self.dims[stage]} channels: '
            + ', '.join(f'{count} x {words}' for words, count in counts.items())
            for stage, counts in made.items()
        )

    def stem_modules(self) -> list[nn.Module]:
        return [self.downsample_layers[0] if self._flat else self.stem]

    def stage_modules(self, stage: int) -> list[nn.Module]:
        before = [self.downsample_layers[stage]] if self._flat and stage else []
        return [*before, self.stages[stage]]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.training and self._clamps:
            if not torch.compiler.is_compiling() and compat.top_transform() is None:
                # Offloaded values come when a layer is called, too late for this.
                values = [p for each in self._clamped() for p in each.parameters(recurse=False)]
                library.check_memory(f'{type(self).__name__} in training', (x, *values))
            self.clamp_parameters()
        return super().forward(x)

    def clamp_parameters(self) -> None:
        """Bring learnt positions that left their window back to its border."""
        for module in self._clamped():
            module.clamp_parameters()

    def _clamped(self) -> list[nn.Module]:
        return [
            each
            for each in self.modules()
            if each is not self and hasattr(each, 'clamp_parameters')
        ]

    def _fold(self) -> None:
        if self._flat:
            for i, module in enumerate(self.downsample_layers):
                self.downsample_layers[i] = folded(module)
        else:
            self.stem = folded(self.stem)
        for stage in self.stages:
            stage.fold()


def _share(mixers: Mapping[str, nn.Module], entries: Sequence[Any]) -> list[list[str]]:
    """Have mixers of a stage with equal entries share positions; names of those that then do."""
    groups: list[tuple[str, Any, list[str]]] = []
    for (name, mixer), entry in zip(mixers.items(), entries, strict=True):
        if not hasattr(mixer, 'share_positions'):
            continue
        stage = name.split('.')[1]
        found = next(
            (names for each in groups for *key, names in [each] if key == [stage, entry]), None
        )
        if found is None:
            groups.append((stage, entry, [name]))
        else:
            mixer.share_positions(mixers[found[0]])
            found.append(name)
    return [names for _, _, names in groups]


def _complete_positions(module: Assembled, state_dict: dict, prefix: str, *_: Any) -> None:
    """Before a load: positions given under one key only count for all blocks that share them."""
    for names in module._shared:
        for parameter in ('P', 'SIG'):
            keys = [f'{prefix}{name}.{parameter}' for name in names]
            known = [key for key in keys if key in state_dict]
            for key in keys if known else ():
                state_dict.setdefault(key, state_dict[known[-1]])
