"""Names of the networks and of their published weights, known without torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from mmlk.checkpoints import zoo


@dataclass(frozen=True)
class Variant:
    """One network.

    Attributes:
        family: Name in :data:`mmlk.networks.FAMILIES`.
        arch: Variant of the family.
        weights: Tag to published file; the first is the one that the plain name stands for.
    """

    family: str
    arch: str
    weights: Mapping[str, zoo.Entry]

    @property
    def name(self) -> str:
        """Family and variant."""
        return f'{self.family}_{self.arch}'


def _variants() -> dict[str, Variant]:
    found: dict[tuple[str, str], dict[str, zoo.Entry]] = {}
    for entry in zoo.ENTRIES.values():
        if entry.task == 'classification' and entry.arch is not None:
            # of copies of one file the first counts, which is the authors'
            found.setdefault((entry.family, entry.arch), {}).setdefault(entry.tag, entry)
    return {
        variant.name: variant
        for (family, arch), weights in found.items()
        for variant in [Variant(family, arch, weights)]
    }


VARIANTS: Mapping[str, Variant] = _variants()
"""Every network by name."""


def list_models(pattern: str | Iterable[str] = '*', pretrained: bool = False) -> list[str]:
    """Names that :func:`mmlk.create_model` takes.

    Args:
        pattern: Shell pattern of names, or several of which one must fit. One without a dot is
            compared with the name before the tag.
        pretrained: List published weights: the plain name of a network stands for its usual file,
            ``name.tag`` for a further one.

    Returns:
        Names, family by family, from small to large.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    found = []
    for variant in VARIANTS.values():
        further = [f'{variant.name}.{tag}' for tag in list(variant.weights)[1:]]
        for name in (variant.name, *(further if pretrained else ())):
            if any(
                fnmatch.fnmatchcase(name if '.' in each else variant.name, each)
                for each in patterns
            ):
                found.append(name)
    return found


def is_model(name: str) -> bool:
    """Whether :func:`mmlk.create_model` knows ``name``, with or without a tag."""
    plain, dot, tag = name.partition('.')
    return plain in VARIANTS and (not dot or tag in VARIANTS[plain].weights)


def find(name: str) -> tuple[Variant, zoo.Entry]:
    """The network called ``name`` or ``name.tag``, and its published weights of that tag.

    Raises:
        ValueError: If there is no such network or tag; the message has the closest names.
    """
    plain, _, tag = name.partition('.')
    variant = VARIANTS.get(plain)
    if variant is None:
        known = list_models(pretrained=True)
        close = get_close_matches(name, known, n=5, cutoff=0.4)
        near = f'closest names: {", ".join(close)}' if close else f'names: {", ".join(VARIANTS)}'
        raise ValueError(f'create_model: there is no model {name!r}; {near}')
    if tag and tag not in variant.weights:
        raise ValueError(
            f'create_model: {plain} has no weights {tag!r}; it has {", ".join(variant.weights)}'
        )
    return variant, variant.weights[tag or next(iter(variant.weights))]
