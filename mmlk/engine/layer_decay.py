"""Learning rates that fall towards the stem, for any backbone that says where its parameters belong.

OpenMMLab's own constructors know the ConvNeXt class name and raise for every other backbone. This
one asks the backbone: ``layer_location(name)`` gives the kind, stage and block of a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmlk.registry import OPTIM_WRAPPER_CONSTRUCTORS

_DECAY_TYPES = ('stage_wise', 'layer_wise')
_OPTIONS = ('decay_rate', 'decay_type', 'num_layers', 'lr_multipliers')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Optimizer groups with ``lr = base_lr * decay_rate ** (num_layers + 1 - layer)``.

    Layers are numbered as ConvNeXt's dense-prediction code numbers them, which the published results
    of SLaK and DCLS-ConvNeXt use (``n`` stands for ``num_layers``):

    ============================  ============  ======================
    parameter                     stage_wise    layer_wise
    ============================  ============  ======================
    stem                          0             0
    downsampling into stage i     0             2, 3, n for i = 1, 2, 3
    block j of stage i            i + 1         1, 2, 3 + j // 3, n
    output norms, neck, heads     n + 1         n + 1
    ============================  ============  ======================

    One-dimensional parameters and biases are not decayed. A backbone may declare more: the class
    attribute ``no_weight_decay`` lists suffixes of parameter names that are not decayed either, and
    ``lr_multipliers`` maps suffixes to factors on the learning rate.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper; its optimizer needs ``lr``.
        paramwise_cfg: ``decay_rate`` in (0, 1]; ``decay_type``, ``'stage_wise'`` or
            ``'layer_wise'`` (default); ``num_layers`` (default: what layer-wise numbering needs,
            ``3 + ceil(depth of stage 2 / 3)``); ``lr_multipliers``, a dict of name suffixes and
            factors which overrides the backbone's.

    Raises:
        ValueError: If an option is unknown or out of range, the optimizer has no ``lr``, the
            backbone does not declare its layers, or ``num_layers`` is too small for its depth.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        super().__init__(optim_wrapper_cfg, dict(paramwise_cfg or {}))
        cfg = self.paramwise_cfg
        unknown = sorted(set(cfg) - set(_OPTIONS))
        if unknown:
            raise ValueError(
                f'LayerDecayConstructor: paramwise_cfg has unknown keys {unknown}; '
                f'accepted: {", ".join(_OPTIONS)}'
            )
        self.decay_rate = cfg.get('decay_rate')
        self.decay_type = cfg.get('decay_type', 'layer_wise')
        if not isinstance(self.decay_rate, (int, float)) or not 0 < self.decay_rate <= 1:
            raise ValueError(
                f'LayerDecayConstructor: decay_rate {self.decay_rate!r} must be a number in (0, 1]'
            )
        if self.decay_type not in _DECAY_TYPES:
            raise ValueError(
                f'LayerDecayConstructor: decay_type {self.decay_type!r} is not one of '
                f'{", ".join(_DECAY_TYPES)}'
            )
        if self.base_lr is None:
            raise ValueError(
                'LayerDecayConstructor: the optimizer config has no lr; set '
                'optim_wrapper.optimizer.lr'
            )

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Append one group per layer number, decay and multiplier, in order of appearance.

        Args:
            params: Groups for the optimizer, extended in place; each also names itself
                (``group_name``) and its factor on the base rate (``lr_scale``).
            module: Model with a ``backbone``, or a backbone itself. Shared parameters count once,
                frozen ones not at all.
        """
        backbone, prefix = _find_backbone(module)
        locations = {
            name: backbone.layer_location(name[len(prefix) :])
            for name, _ in module.named_parameters()
            if name.startswith(prefix)
        }
        num_layers = self._num_layers(locations.values())
        no_decay = tuple(getattr(backbone, 'no_weight_decay', ()))
        multipliers = {
            **getattr(backbone, 'lr_multipliers', {}),
            **self.paramwise_cfg.get('lr_multipliers', {}),
        }
        groups = {}
        for name, param in module.named_parameters():
            if not param.requires_grad:
                continue
            layer = self._layer(locations.get(name), num_layers)
            decays = param.ndim > 1 and not name.endswith(('.bias', *no_decay))
            factor = _multiplier(name, multipliers)
            key = f'layer_{layer}_{"decay" if decays else "no_decay"}'
            key += '' if factor == 1 else f'_x{factor:g}'
            if key not in groups:
                scale = self.decay_rate ** (num_layers + 1 - layer) * factor
                groups[key] = dict(
                    params=[], group_name=key, lr_scale=scale, lr=scale * self.base_lr
                )
                if not decays or self.base_wd is not None:
                    groups[key]['weight_decay'] = self.base_wd if decays else 0.0
            groups[key]['params'].append(param)
        for key, group in groups.items():
            print_log(
                f'{key}: lr {group["lr"]:.6g}, weight decay '
                f'{group.get("weight_decay", "of the optimizer")}, '
                f'{len(group["params"])} tensors',
                logger='current',
            )
        params.extend(groups.values())

    def _num_layers(self, locations: Sequence) -> int:
        """The option, checked against what the depth of the third stage needs."""
        depth = max(
            (at.block + 1 for at in locations if at.kind == 'block' and at.stage == 2), default=0
        )
        needed = 3 + (depth + 2) // 3
        num_layers = self.paramwise_cfg.get('num_layers', needed)
        smallest = needed if self.decay_type == 'layer_wise' else 4
        if not isinstance(num_layers, int) or num_layers < smallest:
            raise ValueError(
                f'LayerDecayConstructor: num_layers {num_layers!r} is below '
                f'{smallest}, which {self.decay_type} decay of this backbone needs'
            )
        return num_layers

    def _layer(self, location, num_layers: int) -> int:
        """Layer number of a parameter; ``location`` is None outside the backbone."""
        if location is None or location.kind == 'norm':
            return num_layers + 1
        kind, stage, block = location
        if kind == 'stem':
            return 0
        if self.decay_type == 'stage_wise':
            return 0 if kind == 'downsample' else stage + 1
        if kind == 'downsample':
            return (0, 2, 3, num_layers)[stage]
        return (1, 2, 3 + block // 3, num_layers)[stage]


def _find_backbone(module: nn.Module) -> tuple[nn.Module, str]:
    """The part of ``module`` that declares layer locations, and the prefix of its names."""
    backbone, prefix = (
        (module, '')
        if hasattr(module, 'layer_location')
        else (getattr(module, 'backbone', None), 'backbone.')
    )
    if not hasattr(backbone, 'layer_location'):
        raise ValueError(
            f'LayerDecayConstructor: backbone {type(backbone).__name__} of '
            f'{type(module).__name__} has no layer_location(name) method; use a '
            'backbone of mmlk, or another optimizer constructor'
        )
    return backbone, prefix


def _multiplier(name: str, multipliers: Mapping[str, float]) -> float:
    """Factor of the longest suffix that ends ``name``."""
    matching = [suffix for suffix in multipliers if name.endswith(suffix)]
    return multipliers[max(matching, key=len)] if matching else 1
