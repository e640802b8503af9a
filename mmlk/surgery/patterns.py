"""Patterns that name convolutions: by kind, depthwise or not, by the size of the kernel and by place."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from mmlk.surgery.layers import is_depthwise

_FORM = re.compile(
    r'(?P<kind>depthwise|conv)(?:\s*(?P<compare>>=|<=|==|>|<)\s*(?P<size>\d+(?:x\d+)?))?'
    r'(?:\s+in\s+(?P<place>\S+))?'
)
_COMPARE = {
    '>=': operator.ge,
    '<=': operator.le,
    '==': operator.eq,
    '>': operator.gt,
    '<': operator.lt,
}


class Pattern(NamedTuple):
    """``depthwise`` or ``conv``, a comparison with the kernel's size, then ``in`` and a place.

    Args:
        text: As it was written.
        kind: ``depthwise``, or ``conv`` for the convolutions that are not.
        compare: Comparison of sizes, '' for none.
        size: (rows, columns), or one number that the longer side is compared with.
        place: Glob for the name of a layer or of a module around it.
    """

    text: str
    kind: str
    compare: str
    size: tuple[int, ...]
    place: str

    def has_kind_of(self, layer: nn.Conv2d) -> bool:
        """Whether it names layers of this kind, depthwise or not, at all."""
        return is_depthwise(layer) == (self.kind == 'depthwise')

    def matches(self, layer: nn.Conv2d, names: Sequence[str]) -> bool:
        """Whether it names a layer, by one of its names."""
        if not self.has_kind_of(layer):
            return False
        if self.compare:
            size = layer.kernel_size if len(self.size) == 2 else (max(layer.kernel_size),)
            if not _COMPARE[self.compare](size, self.size):
                return False
        return any(self._at(name) for name in names)

    def _at(self, name: str) -> bool:
        parts = name.split('.')
        around = ('.'.join(parts[:count]) for count in range(1, len(parts) + 1))
        return any(fnmatch.fnmatchcase(each, self.place) for each in around)


def parse_pattern(text: str) -> Pattern:
    """The pattern that ``text`` writes.

    Raises:
        ValueError: If it has none of the forms.
    """
    found = _FORM.fullmatch(text.strip()) if isinstance(text, str) else None
    compare = found['compare'] or '' if found else ''
    size = tuple(int(each) for each in (found['size'] or '').split('x') if each) if found else ()
    if found is None or len(size) == 2 and compare != '==':
        raise ValueError(
            f"convert: pattern {text!r} is not of the form 'depthwise', 'depthwise>=7' (also <=, <, > "
            "and ==, of the longer side), 'depthwise==1x11', each also with a place: "
            "'depthwise>=7 in stages.2.*'; convolutions that are not depthwise are 'conv', "
            "'conv==3x3 in layer3'"
        )
    return Pattern(text, found['kind'], compare, size, found['place'] or '*')
