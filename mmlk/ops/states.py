"""What layers hand to operators beside tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class BatchNormState(NamedTuple):
    """Parameters and running statistics of a batch norm in training.

    Args:
        weight: (C,).
        bias: (C,).
        running_mean: (C,), updated by every call.
        running_var: (C,), updated by every call.
        count: Batches so far, updated by every call.
        momentum: Share of a batch in the running statistics; None makes them plain averages.
        eps: Added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    count: Tensor | None
    momentum: float | None
    eps: float

    def record(self) -> float:
        """Count one batch; its share in the running statistics."""
        if self.count is not None:
            self.count.add_(1)
        if self.momentum is None:
            return 0.0 if self.count is None else 1.0 / float(self.count)
        return self.momentum

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight, bias, running mean and running variance."""
        return self[:4]
