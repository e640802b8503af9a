"""Whether compiled loops check every access to memory, and what they are told for it.

``MMLK_JIT_CHECK=1`` in the environment, when this module is first imported, makes all loops of the
process compare each load and store with the memory of the operand, or of the scratch, that its pointer
was made from (`mmlk.ops.jit.checked`). An access beyond it is not made, and the call raises.
"""

from __future__ import annotations

import os

from torch import Tensor

ENVIRONMENT = 'MMLK_JIT_CHECK'

ENABLED = os.environ.get(ENVIRONMENT) == '1'
"""Read once: a switch that is off adds no time to calls of compiled loops."""


class Range(int):
    """An address that carries the memory it belongs to; what is added to it is carried along.

    Attributes:
        begin: Address of the first byte of the operand.
        end: Address behind its last byte. Gaps between elements of a strided operand are not told
            from elements.
    """

    begin: int
    end: int

    @classmethod
    def of(cls, x: Tensor) -> Range:
        """Address and memory of a tensor."""
        steps = sum((size - 1) * step for size, step in zip(x.shape, x.stride()))
        begin = x.data_ptr()
        return cls._made(begin, begin, begin + x.element_size() * (1 + steps if x.numel() else 0))

    def __add__(self, distance: int) -> Range:
        return self._made(int(self) + distance, self.begin, self.end)

    @classmethod
    def _made(cls, address: int, begin: int, end: int) -> Range:
        made = cls(address)
        made.begin, made.end = begin, end
        return made
