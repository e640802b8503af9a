"""Copies of weights in the order in which they are read, for inference on a CPU.

torch's layers hand oneDNN plain weights, which it reorders on every call. With a reordered copy that
cost is paid once, and activation or residual can ride on the product. The operators are those that
torch's compiler uses; they have no gradients.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor


class PackedWeights:
    """Reordered copies by name, made on first use and again after a weight has changed.

    A change is a new tensor, new memory or a write that autograd counts. Writes through ``.data``,
    as averaging hooks make them, are not counted: only folded networks, whose weights are final, keep
    copies, and their owners `clear` them where such writes may have happened. Never part of a state
    dict, a pickle or a deep copy.
    """

    def __init__(self) -> None:
        self._copies: dict[Hashable, tuple] = {}

    def __getstate__(self) -> dict:
        return {'_copies': {}}

    def get(self, name: Hashable, weight: Tensor, reorder: Callable[[Tensor], Any]) -> Any:
        """``reorder(weight)``, computed anew only where ``weight`` is another or has changed."""
        key = weight.data_ptr(), weight._version
        kept = self._copies.get(name)
        # The reference tells a weight from a later one in the same memory.
        if kept is None or kept[0]() is not weight or kept[1] != key:
            kept = weakref.ref(weight), key, reorder(weight.detach())
            self._copies[name] = kept
        return kept[2]

    def clear(self) -> None:
        """Forget all copies."""
        self._copies.clear()


class HoldsPackedWeights:
    """Mixin, before ``nn.Module``, that forgets the copies in ``_packed`` at `train` and `eval`."""

    _packed: PackedWeights

    def train(self, mode: bool = True) -> HoldsPackedWeights:
        self._packed.clear()
        return super().train(mode)  # type: ignore[misc]  # of nn.Module, which comes after this class
