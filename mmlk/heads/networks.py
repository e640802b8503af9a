"""The heads of the published classifiers, under their authors' parameter names.

A key of an author's file becomes a key of the head by taking off what names the head itself:
``head.fc1.weight`` of InceptionNeXt is ``fc1.weight`` here, ``norm.weight`` and ``head.weight`` of
the ConvNeXt family are the same here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmlk.checkpoints.classifiers import START_FROM_OTHER_TASK
from mmlk.checkpoints.keymaps import is_counter
from mmlk.layers.fold import norm_affine


class Head(nn.Module):
    """Class scores from the last map.

    Loading a state dict refuses one without the head, and says which layers another number of classes
    leaves at their initial values.

    Args:
        in_channels: Channels C of the map.
        num_classes: Number of classes K.
        **options: For the next class in line, where this one is combined with another.

    Raises:
        ValueError: If a number is not positive.
    """

    class_layers: ClassVar[Sequence[str]]
    """Names of the layers whose width is the number of classes."""
    drops: ClassVar[bool] = False
    """Whether the constructor takes ``dropout``."""
    tells_resized: bool = True
    """Whether loading warns of class layers that keep their values; else its caller refuses them."""

    def __init__(self, in_channels: int, num_classes: int = 1000, **options):
        super().__init__(**options)
        if in_channels < 1 or num_classes < 1:
            raise ValueError(
                f'{type(self).__name__}: in_channels {in_channels} and num_classes {num_classes} '
                'must be positive'
            )
        self.in_channels = in_channels
        self.num_features = in_channels
        """Width F of what the last layer multiplies."""
        self.num_classes = num_classes
        self.deployed = False
        self._register_load_state_dict_pre_hook(_check_loaded_head, with_module=True)

    def pre_logits(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """(N, F) features that the last layer multiplies.

        Args:
            x: The map (N, C, H, W), or the backbone's outputs, whose last one is taken.
        """
        raise NotImplementedError

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Scores (N, K) before the softmax; for ``x`` see :meth:`pre_logits`."""
        raise NotImplementedError

    def class_modules(self) -> list[nn.Module]:
        """The layers whose width is the number of classes."""
        return [self.get_submodule(name) for name in self.class_layers]

    def reset_classes(self, num_classes: int) -> None:
        """New last layers for another number of classes, initialised as at first.

        Args:
            num_classes: 0 leaves the last layers out: the scores are then :meth:`pre_logits`.

        Raises:
            ValueError: If the number is negative.
            RuntimeError: If the head was folded.
        """
        name = type(self).__name__
        if num_classes < 0:
            raise ValueError(f'{name}.reset_classes: num_classes {num_classes} is negative')
        if self.deployed:
            raise RuntimeError(f'{name}.reset_classes: the head was folded by switch_to_deploy')
        for layer in self.class_layers:
            parent, _, leaf = layer.rpartition('.')
            new: nn.Module = nn.Identity()
            if num_classes:
                new = nn.Linear(self.num_features, num_classes)
                new.to(next(self.parameters()))
                _init_linear(new)
            setattr(self.get_submodule(parent), leaf, new)
        self.num_classes = num_classes

    def loadable(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of ``state``, keys of this head, that can be loaded: all but resized class layers.

        A warning names the class layers that keep their values because ``state`` has another number
        of classes.

        Raises:
            ValueError: If a key is missing or has another shape for another reason.
        """
        name, own = type(self).__name__, self.state_dict()
        if self.deployed:
            raise ValueError(
                f'{name}: the head was folded by switch_to_deploy; load before folding'
            )
        if own and not own.keys() & state.keys():
            raise ValueError(f'{name}: the file has no such head; {START_FROM_OTHER_TASK}')
        missing = [key for key in own if key not in state and not is_counter(key)]
        resized = [key for key in own if key in state and state[key].shape != own[key].shape]
        problems = [f'{key} is missing' for key in missing] + [
            f'{key} is {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the module'
            for key in resized
        ]
        if missing or not all(self._differs_in_classes(k, state[k], own[k]) for k in resized):
            raise ValueError(
                f'{name}: the file does not cover the head: {"; ".join(problems[:3])} '
                f'({len(problems)} in all); choose the file of this variant'
            )
        if resized and self.tells_resized:
            self._warn(
                f'{name}: the file is for {len(state[resized[0]])} classes, the module for '
                f'{self.num_classes}: {", ".join(resized)} keep their initial values'
            )
        return {key: value for key, value in state.items() if key not in resized}

    def _differs_in_classes(self, key: str, theirs: Tensor, own: Tensor) -> bool:
        """Whether a class layer has another number of classes, and nothing else is different."""
        return key.rpartition('.')[0] in self.class_layers and theirs.shape[1:] == own.shape[1:]

    def _warn(self, message: str) -> None:
        logging.getLogger('mmlk').warning(message)

    def switch_to_deploy(self) -> Head:
        """Fold for inference, in place, and return the module in eval mode."""
        self.eval()
        self.deployed = True
        return self


class MlpHead(Head):
    """InceptionNeXt's head: pooling, linear, GELU, norm, dropout, linear.

    Args:
        in_channels: Channels C of the map.
        num_classes: Number of classes K.
        dropout: Probability of dropping a feature; 0.5 where the authors fine-tune at 384 x 384.
        **options: See :class:`Head`.
    """

    class_layers = ('fc2',)
    drops = True
    MLP_RATIO = 3

    def __init__(self, in_channels: int, num_classes: int = 1000, dropout: float = 0.0, **options):
        super().__init__(in_channels, num_classes, **options)
        self.num_features = hidden = self.MLP_RATIO * in_channels
        self.fc1 = nn.Linear(in_channels, hidden)
        self.act = nn.GELU()
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.drop = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, num_classes)
        self.apply(_init_linear)

    def pre_logits(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        return self.drop(self.norm(self.act(self.fc1(_pool(x)))))

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        return self.fc2(self.pre_logits(x))


class NormLinearHead(Head):
    """ConvNeXt's head, as SLaK, DCLS-ConvNeXt and UniRepLKNet have it: pooling, norm, linear."""

    class_layers = ('head',)

    def __init__(self, in_channels: int, num_classes: int = 1000, **options):
        super().__init__(in_channels, num_classes, **options)
        self.norm = nn.LayerNorm(in_channels, eps=1e-6)
        self.head = nn.Linear(in_channels, num_classes)
        self.apply(_init_linear)

    def pre_logits(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        return self.norm(_pool(x))

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        return self.head(self.pre_logits(x))


class BatchNormLinearHead(NormLinearHead):
    """RepLKNet's head: batch norm of the map, pooling, linear."""

    def __init__(self, in_channels: int, num_classes: int = 1000, **options):
        super().__init__(in_channels, num_classes, **options)
        self.norm = nn.BatchNorm2d(in_channels)

    def pre_logits(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        return _pool(self.norm(x if isinstance(x, Tensor) else x[-1]))


class TwoBranchHead(Head):
    """RecNeXt's head: pooling, then two branches of batch norm and linear.

    ``head`` learns the labels and ``head_dist`` the teacher's. The scores are the mean of both, also
    in training without a teacher; published files have both branches whether distilled or not.
    """

    class_layers = ('head.linear', 'head_dist.linear')

    def __init__(self, in_channels: int, num_classes: int = 1000, **options):
        super().__init__(in_channels, num_classes, **options)
        self.head = _NormedLinear(in_channels, num_classes)
        self.head_dist = _NormedLinear(in_channels, num_classes)
        self.apply(_init_linear)

    def pre_logits(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        return _pool(x)

    def branches(self, x: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores (N, K) of the label branch and of the teacher's branch.

        Raises:
            RuntimeError: If the head was folded, which leaves one branch.
        """
        if self.deployed:
            raise RuntimeError('TwoBranchHead.branches: the head was folded by switch_to_deploy')
        features = self.pre_logits(x)
        return self.head(features), self.head_dist(features)

    def reset_classes(self, num_classes: int) -> None:
        super().reset_classes(num_classes)
        for branch in (self.head, self.head_dist):
            # without classes nothing computes with the norms, and training would wait for them
            branch.norm.requires_grad_(num_classes > 0)

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        if not self.num_classes:
            return self.pre_logits(x)
        if self.deployed:
            return self.head(self.pre_logits(x))
        labels, teacher = self.branches(x)
        return (labels + teacher) / 2

    @torch.no_grad()
    def switch_to_deploy(self) -> Head:
        """One linear layer in place of both branches; equal in eval mode up to rounding."""
        if self.num_classes and not self.deployed:
            forms = [branch.affine() for branch in (self.head, self.head_dist)]
            merged = nn.Linear(self.in_channels, self.num_classes).to(self.head.linear.weight)
            merged.weight.copy_(sum(weight for weight, _ in forms) / 2)
            merged.bias.copy_(sum(bias for _, bias in forms) / 2)
            self.head, self.head_dist = merged, None
        return super().switch_to_deploy()


class _NormedLinear(nn.Module):
    """Batch norm over the features of a batch, then a linear layer."""

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(in_channels)
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, in float64, of the linear layer that equals this in eval mode."""
        scale, shift = norm_affine(self.norm)
        weight = self.linear.weight.double()
        return weight * scale, self.linear.bias.double() + weight @ shift


def _check_loaded_head(
    module: Head, state_dict: MutableMapping[str, Tensor], prefix: str, *_: Any
) -> None:
    """Before any load: every key in its shape, or the class layers alone in another width."""
    if module.deployed:
        return
    given = {
        key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)
    }
    for key in given.keys() - module.loadable(given).keys():
        del state_dict[prefix + key]


def _pool(x: Tensor | Sequence[Tensor]) -> Tensor:
    """Mean over height and width of the last map."""
    return (x if isinstance(x, Tensor) else x[-1]).mean((2, 3))


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
