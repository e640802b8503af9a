"""The heads of the published classifiers, under their authors' parameter names.

A key of an author's file becomes a key of the head by taking off what names the head itself:
``head.fc1.weight`` of InceptionNeXt is ``fc1.weight`` here, ``norm.weight`` and ``head.weight`` of
the ConvNeXt family are the same here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmlk.layers.fold import norm_affine


class Head(nn.Module):
    """Class scores from the last map.

    Args:
        in_channels: Channels C of the map.
        num_classes: Number of classes K.
        **options: For the next class in line, where this one is combined with another.

    Raises:
        ValueError: If a number is not positive.
    """

    class_layers: ClassVar[Sequence[str]]
    """Names of the layers whose width is the number of classes."""

    def __init__(self, in_channels: int, num_classes: int = 1000, **options):
        super().__init__(**options)
        if in_channels < 1 or num_classes < 1:
            raise ValueError(
                f'{type(self).__name__}: in_channels {in_channels} and num_classes {num_classes} '
                'must be positive'
            )
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.deployed = False

    def pre_logits(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """(N, F) features that the last layer multiplies.

        Args:
            x: The map (N, C, H, W), or the backbone's outputs, whose last one is taken.
        """
        raise NotImplementedError

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Scores (N, K) before the softmax; for ``x`` see :meth:`pre_logits`."""
        raise NotImplementedError

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
    MLP_RATIO = 3

    def __init__(self, in_channels: int, num_classes: int = 1000, dropout: float = 0.0, **options):
        super().__init__(in_channels, num_classes, **options)
        hidden = self.MLP_RATIO * in_channels
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
    """ConvNeXt's head, as SLaK and DCLS-ConvNeXt have it: pooling, norm, linear."""

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

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        if self.deployed:
            return self.head(self.pre_logits(x))
        labels, teacher = self.branches(x)
        return (labels + teacher) / 2

    @torch.no_grad()
    def switch_to_deploy(self) -> Head:
        """One linear layer in place of both branches; equal in eval mode up to rounding."""
        if not self.deployed:
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


def _pool(x: Tensor | Sequence[Tensor]) -> Tensor:
    """Mean over height and width of the last map."""
    return (x if isinstance(x, Tensor) else x[-1]).mean((2, 3))


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
