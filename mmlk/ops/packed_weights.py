"""Copies of weights in the order in which they are read, for inference on a CPU.

torch's layers hand oneDNN plain weights, which it reorders on every call. With a reordered copy that
cost is paid once, and an activation or a residual is added in the same pass. The operators are those
that torch's compiler uses; they have no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmlk.ops.jit import recording
from mmlk.ops.library import PLAIN
from mmlk.ops.modules import NotScriptable


class PackedWeights:
    """Reordered copies by name, made on first use and again after a weight has changed.

    `Snapshot` says what counts as a change. Copies are never part of a state dict, a pickle or a deep
    copy of the module.
    """

    def __init__(self) -> None:
        self._copies: dict[Hashable, tuple[Snapshot, Any]] = {}

    def __getstate__(self) -> dict:
        return {'_copies': {}}

    def get(self, name: Hashable, weight: Tensor, reorder: Callable[[Tensor], Any]) -> Any:
        """``reorder(weight)``, computed anew only where ``weight`` is another or has changed."""
        recorder = recording.recorder()
        if recorder is None:
            return self._kept(name, weight, reorder)[1]
        with recorder.paused():
            kept = self._kept(name, weight, reorder)
        recorder.note_derived(Derived(self, name, kept, weight), kept[1])
        return kept[1]

    def _kept(self, name: Hashable, weight: Tensor, reorder: Callable[[Tensor], Any]) -> tuple:
        kept = self._copies.get(name)
        if kept is None or not kept[0].holds(weight):
            kept = Snapshot(weight), reorder(weight.detach())
            self._copies[name] = kept
        return kept

    def holds(self, name: Hashable, kept: Any, weight: Tensor) -> bool:
        """Whether `get` would return ``kept``, what a recorder was told, for ``weight``."""
        current = self._copies.get(name)
        return current is not None and current is kept and current[0].holds(weight)

    def clear(self) -> None:
        """Forget all copies."""
        self._copies.clear()


class Derived(NamedTuple):
    """A copy that a recorder was told of (`mmlk.ops.jit.recording`)."""

    copies: PackedWeights
    name: Hashable
    kept: Any
    weight: Tensor


class Snapshot:
    """State of a tensor, to be asked later whether it is still the same.

    Other memory, another shape and every write that autograd counts are seen. Averaging hooks and
    adapters write through ``.data``, which is not counted: for these, elements are compared. Up to
    `WHOLE` of them all are; of a larger tensor one in ``numel // WHOLE``, because reading all weights
    in each call took a tenth of the time of a folded RecNeXt, and 4,096 of each a twentieth. A write
    of some per cent of the elements is seen; one of single elements through ``.data`` may go
    unseen until ``train()`` or ``eval()``. On other devices reading would wait, so elements are
    compared on the CPU only.
    """

    WHOLE = 256

    def __init__(self, tensor: Tensor) -> None:
        # An alias keeps the memory from being used for another tensor and counts writes through others
        # that share it. A reference to the parameter, weak ones too, would keep torch from swapping it.
        self._alias = tensor.detach()
        self._state = _state(tensor), self._alias._version
        self._bits = _bits(tensor, self.WHOLE)
        self._seen = self._bits.clone()

    def holds(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` has the memory of the snapshot, in the same state."""
        return self._state == (_state(tensor), self._alias._version) and torch.equal(
            self._seen, self._bits
        )


def _state(tensor: Tensor) -> tuple:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version


def _bits(tensor: Tensor, most: int) -> Tensor:
    """Elements of a tensor, spread over its memory, as integers that share it.

    They are at most twice ``most``, and all if there are no more than that.
    """
    plain = tensor.detach()
    if type(tensor) not in PLAIN or not plain.is_cpu or plain.numel() == 0:
        return torch.empty(0, dtype=torch.int8)
    span = 1 + sum((size - 1) * step for size, step in zip(plain.shape, plain.stride()))
    # An odd step meets all columns of a matrix: their number is even in most networks.
    step = max(span // most, 1) | 1 if span > most else 1
    count = (span + step - 1) // step
    words = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[plain.element_size()]
    return plain.as_strided((count,), (step,)).view(words)


class HoldsPackedWeights(NotScriptable):
    """Mixin, before ``nn.Module``, that forgets the copies in ``_packed`` at `train` and `eval`."""

    _packed: PackedWeights

    def train(self, mode: bool = True) -> HoldsPackedWeights:
        self._packed.clear()
        return super().train(mode)  # type: ignore[misc]  # of nn.Module, which comes after this class
