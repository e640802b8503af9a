"""``mmlk.convert``: another operator in the place of a network's convolutions."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from mmlk.ops import DepthwiseConv2d
from mmlk.surgery.acceleration import AcceleratedConv2d
from mmlk.surgery.carried import residual
from mmlk.surgery.layers import (
    convolutions,
    dense_kernel,
    described,
    is_depthwise,
    refusal_of_geometry,
    refusal_of_kind,
)
from mmlk.surgery.rules import Chosen, Layers, Rule, matched, parse_rule, some
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
        residual: Norm of what the new kernel misses over the norm of the old one; 0 is exact, None says
            that weights were not carried over.
        note: What else was lost, '' for nothing.
        parameters: Numbers of parameters, before and after; positions that layers share count once.
    """

    names: tuple[str, ...]
    pattern: str
    before: str
    after: str
    residual: float | None
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


def convert(
    model: nn.Module,
    rules: Mapping[str, Mapping[str, Any]],
    *,
    carry_weights: bool = True,
    share_positions: bool = False,
    inplace: bool = False,
) -> Conversion:
    """Replace convolutions of a network and carry their weights over.

    Args:
        model: Any network.
        rules: From patterns to what replaces the layers that they name. Patterns are ``'depthwise'``,
            ``'depthwise>=7'`` (also ``<=``, ``<``, ``>``, ``==``: the longer side of the kernel),
            ``'depthwise==1x11'`` (rows x columns), each with an optional place: ``'depthwise in
            stages.2'`` takes layers whose name, or that of a module around them, matches the glob.
            ``'conv'`` in the place of ``'depthwise'`` names the convolutions that are not depthwise. A
            replacement is ``dict(type='mmlk.DCLSDepthwiseConv2d', kernel_count=49)``: a class of
            `mmlk.ops` with its own arguments but those that the layer has: channels, groups, stride,
            padding and bias.
        carry_weights: False leaves new layers as their class initialises them, to train from scratch;
            the network may be on ``meta`` then.
        share_positions: Whether layers of one rule with learnable positions share them where channels,
            groups and kernel are equal, as in the stages of a ResNet.
        inplace: Change ``model`` itself; otherwise a deep copy of it.

    Returns:
        The network and what was replaced, with the residual of each layer's kernel.

    Raises:
        ValueError: If a pattern is wrong or names no layer, two name the same layer, the type or one
            of its options is unknown, positions are to be shared and no layer has any, or a layer
            cannot be replaced; the network is as before then.
    """
    parsed = [parse_rule(text, config) for text, config in rules.items()]
    if not parsed:
        raise ValueError("convert: there are no rules, give {'depthwise>=7': dict(type=...)}")
    if share_positions and all(rule.part.place is None for rule in parsed):
        raise ValueError(
            'convert: share_positions is set, and no rule has a type with positions, such as '
            'mmlk.DCLSConv2d; leave it out'
        )
    layers = convolutions(model)
    chosen = matched(layers, parsed)
    _refuse(model, layers, chosen, carry_weights)
    made = {
        layer: _make(layer, layers[layer], rule, carry_weights) for layer, rule in chosen.items()
    }
    groups = _groups(chosen, share_positions)
    for owner, *followers in groups:
        for layer in followers:
            made[layer].share_positions(made[owner])
    carried = _carry(chosen, groups, made) if carry_weights else {}
    reports = tuple(
        _finish(layer, layers[layer], rule, made[layer], *carried.get(layer, (None, '')))
        for layer, rule in chosen.items()
    )
    target = model if inplace else copy.deepcopy(model)
    for layer, module in made.items():
        for name in layers[layer]:
            parent, _, child = name.rpartition('.')
            setattr(target.get_submodule(parent), child, module)
    return Conversion(target, reports)


def _carried(each: Converted) -> str:
    if each.residual is None:
        return 'not carried over'
    words = 'exact' if each.residual == 0 else f'residual {each.residual:.2g}'
    return f'{words}; {each.note}' if each.note else words


def _refuse(model: nn.Module, layers: Layers, chosen: Chosen, carry_weights: bool) -> None:
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
        elif reason is None and carry_weights and layer.weight.is_meta:
            reason = 'its weights are on meta and have no values'
        if reason is not None:
            name = layers[layer][0] or type(layer).__name__
            reasons.append(f'{name} ({described(layer)}): {reason}')
    if reasons:
        raise ValueError(
            f'convert: {len(reasons)} of {len(chosen)} layers cannot be replaced, the network is as '
            f"before; narrow the pattern with 'in PLACE'. {some(reasons)}"
        )


def _refusal(layer: nn.Conv2d, rule: Rule) -> str | None:
    """Reason why a layer cannot be replaced by the part of a rule, or None."""
    reason = refusal_of_kind(layer, _OURS)
    if reason is None and rule.part.depthwise:
        reason = refusal_of_geometry(layer)
        if not is_depthwise(layer):
            reason = f'it is not depthwise, as mmlk.{rule.kind} is; mmlk.DCLSConv2d can replace it'
    if reason is not None:
        return reason
    if any(layer.__dict__.get(each) for each in _HOOKS):
        return 'it has hooks, which the new layer would not call'
    if layer.stride != (1, 1) and not rule.part.strides:
        return f'it has stride {layer.stride}, which mmlk.{rule.kind} has not'
    if layer.bias is not None and not rule.part.biases:
        return f'it has a bias, which mmlk.{rule.kind} has not'
    return None


def _make(layer: nn.Conv2d, names: tuple[str, ...], rule: Rule, carry_weights: bool) -> nn.Module:
    """The new layer in the dtype of the old one; weights are carried over on the CPU."""
    with torch.device('cpu') if carry_weights else layer.weight.device:
        try:
            return rule.part.make(layer, **rule.options).to(layer.weight.dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f'convert: {names[0]} ({layer.in_channels} channels, {described(layer)}) cannot '
                f'become mmlk.{rule.kind} with {rule.options}: {error}'
            ) from error


def _groups(chosen: Chosen, share_positions: bool) -> list[list[nn.Conv2d]]:
    """Layers with positions, together those that share them."""
    groups: dict[Any, list[nn.Conv2d]] = {}
    for layer, rule in chosen.items():
        if rule.part.place is not None:
            weight = layer.weight
            alike = (
                (rule.pattern, layer.groups, weight.shape, layer.dilation),
                (weight.device, weight.dtype, weight.requires_grad),
            )
            groups.setdefault(alike if share_positions else layer, []).append(layer)
    return list(groups.values())


def _carry(
    chosen: Chosen, groups: Iterable[list[nn.Conv2d]], made: Mapping[nn.Conv2d, nn.Module]
) -> dict[nn.Conv2d, tuple[float, str]]:
    """Give the new layers the weights of the old ones: residual and note of each."""
    for group in groups:
        chosen[group[0]].part.place(group, made[group[0]])
    results = {}
    for layer, rule in chosen.items():
        carried = rule.part.carry(layer, made[layer])
        results[layer] = residual(dense_kernel(layer), carried.kernel), carried.note
    return results


def _finish(
    layer: nn.Conv2d,
    names: tuple[str, ...],
    rule: Rule,
    module: nn.Module,
    missed: float | None,
    note: str,
) -> Converted:
    """Bring the new layer to the device and the mode of the old one; what became of its weights."""
    module.to(layer.weight.device).train(layer.training)
    module.requires_grad_(layer.weight.requires_grad)
    before, after = (sum(each.numel() for each in part.parameters()) for part in (layer, module))
    return Converted(
        names,
        rule.pattern.text,
        described(layer),
        f'mmlk.{rule.kind}',
        missed,
        note,
        (before, after),
    )
