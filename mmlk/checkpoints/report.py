"""What became of every key when a state dict met a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

_SHOWN = 5


@dataclass
class Report:
    """Outcome of comparing a state dict with a backbone's own keys and shapes.

    Attributes:
        title: The family, in the paper's spelling.
        source: File or URL, or a word for a state dict that came from elsewhere.
        own_count: Number of keys of the backbone.
        matched: Own key to source key, for every key that will be loaded.
        missing: Own keys that nothing covers.
        mismatched: (own key, shape in the file, shape in the module).
        extra: Trunk keys of the file for which the module has no place, such as further blocks.
        unexpected: Other unknown keys of the file; they are ignored.
        dropped: Classifier keys and leftovers, left out on purpose.
        fresh: Own keys that may be absent (output norms, counters) and keep their initial values.
        notes: What was unwrapped, renamed or changed in value.
        problems: Contradictions inside the file; each one alone makes it unusable.
        cause: The likely reason of a failure, with the remedy.
    """

    title: str
    source: str = 'state dict'
    own_count: int = 0
    matched: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple, tuple]] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cause: str = ''

    @property
    def covered(self) -> bool:
        """Whether the file covers the trunk, the whole trunk, and no other trunk."""
        return not (self.missing or self.mismatched or self.extra or self.problems)

    def summary(self) -> str:
        """Counts and, line by line, everything that is not a plain match."""
        lines = [
            f'{self.title} weights from {self.source}: {len(self.matched)} of '
            f'{self.own_count} keys matched, '
            f'{len(self.missing) + len(self.fresh)} missing, '
            f'{len(self.extra) + len(self.unexpected)} unexpected, '
            f'{len(self.mismatched)} of another shape, {len(self.dropped)} dropped'
        ]
        if self.dropped:
            lines.append(f'dropped (classifier): {_some(self.dropped)}')
        if self.fresh:
            modules = list(dict.fromkeys(key.rpartition('.')[0] for key in self.fresh))
            lines.append(f'not in the file, left at their initial values: {_some(modules)}')
        if self.unexpected:
            lines.append(f'ignored, unknown: {_some(self.unexpected)}')
        return '\n  '.join(lines + self.notes)

    def failure(self) -> str:
        """What keeps the trunk from being covered, first keys first; empty if nothing does."""
        if self.covered:
            return ''
        lines = [
            f'{self.title}: {self.source} does not cover the backbone: '
            f'{len(self.matched)} of {self.own_count} keys match'
        ]
        if self.missing:
            lines.append(f'{len(self.missing)} missing: {_some(self.missing)}')
        if self.mismatched:
            shown = [
                f'{key} {_size(theirs)} in the file, {_size(own)} in the module'
                for key, theirs, own in self.mismatched[:_SHOWN]
            ]
            lines.append(f'{len(self.mismatched)} of another shape: {"; ".join(shown)}')
        if self.extra:
            lines.append(f'{len(self.extra)} without a place: {_some(self.extra)}')
        return '\n  '.join([*lines, *self.problems, *([self.cause] if self.cause else [])])

    def raise_if_uncovered(self) -> Report:
        """Return the report itself, or raise if part of the trunk would keep its old values.

        Raises:
            ValueError: With the first offending keys, the likely cause and the remedy.
        """
        if not self.covered:
            raise ValueError(self.failure())
        return self


def _some(keys: Sequence[str]) -> str:
    more = f', and {len(keys) - _SHOWN} more' if len(keys) > _SHOWN else ''
    return ', '.join(keys[:_SHOWN]) + more


def _size(shape: Sequence[int]) -> str:
    return 'x'.join(map(str, shape)) or 'scalar'
