"""Rules of `convert`: a pattern, and what replaces the layers that it names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from mmlk.surgery.layers import described
from mmlk.surgery.parts import PARTS, Part
from mmlk.surgery.patterns import Pattern, parse_pattern


class Rule(NamedTuple):
    """What replaces the layers that a pattern names.

    Args:
        pattern: The pattern.
        kind: Name of the class.
        part: How that class replaces a layer.
        options: Its options.
    """

    pattern: Pattern
    kind: str
    part: Part
    options: dict[str, Any]


Layers = Mapping[nn.Conv2d, tuple[str, ...]]
"""Layers of a network with all their names."""
Chosen = dict[nn.Conv2d, Rule]
"""Layers with the rules that name them."""


def parse_rule(text: str, config: Mapping[str, Any]) -> Rule:
    """A rule whose type exists and has these options.

    Raises:
        ValueError: If the pattern, the type or an option is wrong.
    """
    pattern = parse_pattern(text)
    if not isinstance(config, Mapping) or not isinstance(config.get('type'), str):
        raise ValueError(
            f"convert: {text!r} has {config!r}, expected dict(type='mmlk.DepthwiseConv2d', ...)"
        )
    options = {key: value for key, value in config.items() if key != 'type'}
    kind = config['type'].removeprefix('mmlk.')
    if kind not in PARTS:
        close = difflib.get_close_matches(kind, PARTS, 1)
        hint = f', did you mean {close[0]!r}?' if close else ''
        raise ValueError(
            f'convert: {text!r} has the unknown type {config["type"]!r}{hint} '
            f'There are {", ".join(f"mmlk.{each}" for each in PARTS)}'
        )
    unknown = sorted(set(options) - set(PARTS[kind].options))
    if unknown:
        raise ValueError(
            f'convert: {text!r} gives {config["type"]} the option {unknown[0]!r}, '
            f'it has {", ".join(PARTS[kind].options)}; channels, stride, padding and bias are those of '
            'the layer'
        )
    return Rule(pattern, kind, PARTS[kind], options)


def matched(layers: Layers, rules: list[Rule]) -> Chosen:
    """The rule of every layer that one names.

    Raises:
        ValueError: If a rule names no layer, or two name the same.
    """
    chosen: Chosen = {}
    for rule in rules:
        found = [layer for layer, names in layers.items() if rule.pattern.matches(layer, names)]
        if not found:
            pattern = rule.pattern
            there = [
                f'{names[0]} ({described(layer)})'
                for layer, names in layers.items()
                if pattern.has_kind_of(layer)
            ]
            kind = 'depthwise' if pattern.kind == 'depthwise' else 'other'
            raise ValueError(
                f'convert: pattern {pattern.text!r} matches nothing; {kind} convolutions of '
                f'the network: {some(there) or "none"}'
            )
        for layer in found:
            if layer in chosen:
                raise ValueError(
                    f'convert: patterns {chosen[layer].pattern.text!r} and {rule.pattern.text!r} '
                    f"both name {layers[layer][0]}; narrow one with 'in PLACE'"
                )
            chosen[layer] = rule
    return {layer: chosen[layer] for layer in layers if layer in chosen}


def some(words: list[str], most: int = 5) -> str:
    """The first of many words."""
    rest = len(words) - most
    return '; '.join(words[:most]) + (f'; and {rest} more' if rest > 0 else '')
