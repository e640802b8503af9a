"""``mmlk.convert``: another operator in the place of a network's depthwise convolutions."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from mmlk.ops import DepthwiseConv2d
from mmlk.surgery.acceleration import AcceleratedConv2d
from mmlk.surgery.layers import (
    dense_kernel,
    depthwise_layers,
    described,
    refusal_of_geometry,
    refusal_of_kind,
)
from mmlk.surgery.parts import PARTS, Part, residual
from mmlk.surgery.patterns import Pattern, parse_pattern
from mmlk.surgery.table import table

_OURS = (DepthwiseConv2d, AcceleratedConv2d)
_HOOKS = (
    '_forward_hooks',
    '_forward_pre_hooks',
    '_backward_hooks',
    '_backward_pre_hooks',
    '_state_dict_hooks',
    '_state_dict_pre_hooks',
    '_load_state_dict_pre_hooks',
    '_load_state_dict_post_hooks',
)


class Converted(NamedTuple):
    """One layer that was replaced.

    Args:
        names: All names of the layer in the network.
        pattern: The pattern that named it.
        before: Its kernel, stride and dilation.
        after: The class that stands there now.
        residual: Norm of what the new kernel misses over the norm of the old one; 0 is exact.
        note: What else was lost, '' for nothing.
        parameters: Numbers of parameters, before and after.
    """

    names: tuple[str, ...]
    pattern: str
    before: str
    after: str
    residual: float
    note: str
    parameters: tuple[int, int]


class Conversion(NamedTuple):
    """What `convert` returns; printed, it is a table of the layers.

    Args:
        model: The converted network.
        layers: What was replaced, in the order of the network.
    """

    model: nn.Module
    layers: tuple[Converted, ...]

    def __str__(self) -> str:
        rows = [
            (
                ', '.join(each.names),
                each.before,
                each.after,
                '{} -> {}'.format(*each.parameters),
                _carried(each),
            )
            for each in self.layers
        ]
        return table(('layer', 'was', 'is', 'parameters', 'weights'), rows)


class _Rule(NamedTuple):
    pattern: Pattern
    kind: str
    part: Part
    options: dict[str, Any]


def convert(
    model: nn.Module, rules: Mapping[str, Mapping[str, Any]], *, inplace: bool = False
) -> Conversion:
    """Replace depthwise convolutions of a network and carry their weights over.

    Args:
        model: Any network.
        rules: From patterns to what replaces the layers that they name. Patterns are ``'depthwise'``,
            ``'depthwise>=7'`` (also ``<=``, ``<``, ``>``, ``==``: the longer side of the kernel),
            ``'depthwise==1x11'`` (rows x columns), each with an optional place: ``'depthwise in
            stages.2'`` takes layers whose name, or that of a module around them, matches the glob. A
            replacement is ``dict(type='mmlk.DCLSDepthwiseConv2d', kernel_count=49)``: a class of
            `mmlk.ops` with its own arguments but channels, stride and bias.
        inplace: Change ``model`` itself; otherwise a deep copy of it.

    Returns:
        The network and what was replaced, with the residual of each layer's kernel.

    Raises:
        ValueError: If a pattern is wrong or names no layer, two name the same layer, the type or one
            of its options is unknown, or a layer cannot be replaced; the network is as before then.
    """
    parsed = [_rule(text, config) for text, config in rules.items()]
    if not parsed:
        raise ValueError("convert: there are no rules, give {'depthwise>=7': dict(type=...)}")
    layers = depthwise_layers(model)
    chosen = _matched(layers, parsed)
    _refuse(model, layers, chosen)
    target = model if inplace else copy.deepcopy(model)
    made, reports = [], []
    for layer, rule in chosen.items():
        own = target.get_submodule(layers[layer][0])
        module, report = _replacement(own, layers[layer], rule)
        made.append((layers[layer], module))
        reports.append(report)
    for names, module in made:
        for name in names:
            parent, _, child = name.rpartition('.')
            setattr(target.get_submodule(parent), child, module)
    return Conversion(target, tuple(reports))


def _carried(each: Converted) -> str:
    words = 'exact' if each.residual == 0 else f'residual {each.residual:.2g}'
    return f'{words}; {each.note}' if each.note else words


def _rule(text: str, config: Mapping[str, Any]) -> _Rule:
    """A rule whose type exists and has these options."""
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
            f'it has {", ".join(PARTS[kind].options)}; channels, stride and bias are those of the layer'
        )
    return _Rule(pattern, kind, PARTS[kind], options)


def _matched(
    layers: Mapping[nn.Conv2d, tuple[str, ...]], rules: list[_Rule]
) -> dict[nn.Conv2d, _Rule]:
    """The rule of every layer that one names."""
    chosen: dict[nn.Conv2d, _Rule] = {}
    for rule in rules:
        found = [layer for layer, names in layers.items() if rule.pattern.matches(layer, names)]
        if not found:
            there = [f'{names[0]} ({described(layer)})' for layer, names in layers.items()]
            raise ValueError(
                f'convert: pattern {rule.pattern.text!r} matches nothing; depthwise convolutions of '
                f'the network: {_some(there) or "none"}'
            )
        for layer in found:
            if layer in chosen:
                raise ValueError(
                    f'convert: patterns {chosen[layer].pattern.text!r} and {rule.pattern.text!r} '
                    f"both name {layers[layer][0]}; narrow one with 'in PLACE'"
                )
            chosen[layer] = rule
    return {layer: chosen[layer] for layer in layers if layer in chosen}


def _refuse(
    model: nn.Module,
    layers: Mapping[nn.Conv2d, tuple[str, ...]],
    chosen: Mapping[nn.Conv2d, _Rule],
) -> None:
    """Raise for layers that cannot be replaced."""
    owners: dict[int, set[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(module)
    reasons = []
    for layer, rule in chosen.items():
        reason = _refusal(layer, rule)
        if layer is model:
            reason = 'it is the whole model, put it into an nn.Sequential'
        elif any(len(owners[id(each)]) > 1 for each in layer.parameters()):
            reason = 'another module has the same parameters'
        if reason is not None:
            name = layers[layer][0] or type(layer).__name__
            reasons.append(f'{name} ({described(layer)}): {reason}')
    if reasons:
        raise ValueError(
            f'convert: {len(reasons)} of {len(chosen)} layers cannot be replaced, the network is as '
            f"before; narrow the pattern with 'in PLACE'. {_some(reasons)}"
        )


def _refusal(layer: nn.Conv2d, rule: _Rule) -> str | None:
    """Reason why a layer cannot be replaced by the part of a rule, or None."""
    reason = refusal_of_kind(layer, _OURS) or refusal_of_geometry(layer)
    if reason is not None:
        return reason
    if any(layer.__dict__.get(each) for each in _HOOKS):
        return 'it has hooks, which the new layer would not call'
    if layer.weight.is_meta:
        return 'its weights are on meta and have no values'
    if layer.stride != (1, 1) and not rule.part.strides:
        return f'it has stride {layer.stride}, which mmlk.{rule.kind} has not'
    if layer.bias is not None and not rule.part.biases:
        return f'it has a bias, which mmlk.{rule.kind} has not'
    return None


def _replacement(
    layer: nn.Conv2d, names: tuple[str, ...], rule: _Rule
) -> tuple[nn.Module, Converted]:
    """The new layer on the device and in the dtype of the old one, and what became of its weights."""
    with torch.device('cpu'):
        try:
            carried = rule.part.build(layer, **rule.options)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f'convert: {names[0]} ({layer.in_channels} channels, {described(layer)}) cannot '
                f'become mmlk.{rule.kind} with {rule.options}: {error}'
            ) from error
        missed = residual(dense_kernel(layer), carried.kernel)
    module = carried.module.to(layer.weight.device, layer.weight.dtype).train(layer.training)
    module.requires_grad_(layer.weight.requires_grad)
    before, after = (sum(each.numel() for each in part.parameters()) for part in (layer, module))
    report = Converted(
        names,
        rule.pattern.text,
        described(layer),
        f'mmlk.{rule.kind}',
        missed,
        carried.note,
        (before, after),
    )
    return module, report


def _some(words: list[str], most: int = 5) -> str:
    """The first of many words."""
    rest = len(words) - most
    return '; '.join(words[:most]) + (f'; and {rest} more' if rest > 0 else '')
