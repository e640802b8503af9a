"""Whether a backbone can be built as the config says, and whether what reads its outputs fits.

An inherited config is changed to another family or variant in one line; what that line leaves behind
(settings the new family does not have, another family's weights, channels of necks and heads) fails
one by one, the last at the first forward pass. Here it is found at once, with the lines to write.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from mmengine.config import Config, ConfigDict

from mmlk.checkpoints import zoo
from mmlk.networks.base import Network
from mmlk.registry import MODELS


def check_fit(cfg: Config) -> None:
    """Build the backbone without memory and compare it with its weights, neck and heads.

    Args:
        cfg: Config whose ``model`` has a backbone of this package; others pass.

    Raises:
        ValueError: With what does not fit and the lines to write.
    """
    model = cfg.get('model') or {}
    model = model.get('module', model)  # of a model for test-time augmentation
    settings = model.get('backbone') or {}
    if not str(settings.get('type', '')).startswith('mmlk.'):
        return
    if inspect.isfunction(MODELS.get(settings['type'])):
        return  # it builds a network of any package
    plain = ConfigDict(settings).to_dict()
    kind, pretrained = plain.pop('type'), plain.pop('init_cfg', None)
    lines: dict[str, dict] = {}
    reasons = []
    try:
        backbone = _build(kind, plain)
    except (TypeError, ValueError) as error:
        reasons.append(str(error))
        plain = _accepted(kind, plain)
        backbone = _build(kind, plain)
        lines['backbone'] = dict(_delete_=True, type=kind, **plain, init_cfg=pretrained)
    wrong = _other_weights(backbone, pretrained)
    if wrong:
        reasons.append(wrong)
        proposed = _own_weights(backbone)
        lines.setdefault('backbone', {})['init_cfg'] = proposed and dict(
            _delete_=True, type='Pretrained', checkpoint=proposed
        )
    expected = _expected_channels(model, backbone.out_channels)
    if expected:
        channels = ', '.join(map(str, backbone.out_channels))
        reasons.append(f'the outputs of {kind} have {channels} channels')
        lines.update(expected)
    if reasons:
        changes = ''.join(f'    {name}={_code(value)},\n' for name, value in lines.items())
        raise ValueError(f'model: {"; ".join(reasons)}. Write\nmodel = dict(\n{changes})')


def _build(kind: str, settings: dict) -> Network:
    with torch.device('meta'):
        return MODELS.build(dict(settings, type=kind))


def _accepted(kind: str, settings: dict) -> dict:
    """The settings with which the backbone can be built, taken in their order."""
    kept: dict = {}
    for name, value in settings.items():
        try:
            _build(kind, {**kept, name: value})
        except (TypeError, ValueError):
            continue
        kept[name] = value
    return kept


def _other_weights(backbone: Network, pretrained: Any) -> str:
    """That the published file which the config names is another network's; '' if not."""
    entry = _published((pretrained or {}).get('checkpoint'))
    if entry is None or (entry.family == backbone.family and entry.arch == _arch(backbone)):
        return ''
    return f'{entry.name} holds weights of {entry.family} {entry.arch}'


def _own_weights(backbone: Network) -> str | None:
    """The first published classifier of the backbone's own variant."""
    found = [
        f'{zoo.SCHEME}{entry.name}'
        for entry in zoo.ENTRIES.values()
        if (entry.family, entry.arch, entry.task)
        == (backbone.family, _arch(backbone), 'classification')
    ]
    return found[0] if found else None


def _published(source: Any) -> zoo.Entry | None:
    names = {entry.url: entry for entry in zoo.ENTRIES.values()}
    names |= {f'{zoo.SCHEME}{name}': entry for name, entry in zoo.ENTRIES.items()}
    return names.get(source)


def _arch(backbone: Network) -> str | None:
    """Name of the variant, None for one of the user's own."""
    known = type(backbone).arch_settings.items()
    found = next((name for name, settings in known if settings == backbone.arch), None)
    return found and found.removeprefix(f'{backbone.family}_')  # which MetaNeXt's names begin with


def _expected_channels(model: dict, channels: tuple[int, ...]) -> dict[str, dict]:
    """Changes of ``in_channels`` that a classifier's head, neck, or decode and auxiliary head need."""
    classifier = model.get('head')
    if isinstance(classifier, dict) and str(classifier.get('type')).startswith('mmlk.'):
        fits = classifier.get('in_channels', channels[-1]) == channels[-1]
        return {} if fits else {'head': dict(in_channels=channels[-1])}
    neck = model.get('neck')
    if neck:
        given = neck.get('in_channels') if isinstance(neck, dict) else None
        fits = not isinstance(given, (list, tuple)) or list(given) == list(channels)
        return {} if fits else {'neck': dict(in_channels=list(channels))}
    changes: dict[str, dict] = {}
    for name in ('decode_head', 'auxiliary_head'):
        head = model.get(name)
        if not isinstance(head, dict) or 'in_channels' not in head:
            continue
        index = head.get('in_index', -1)
        taken = index if isinstance(index, (list, tuple)) else [index]
        if max(taken) >= len(channels) or min(taken) < -len(channels):
            raise ValueError(
                f'model.{name}: in_index {index} names outputs that the backbone does not have; '
                f'its out_indices give {len(channels)}'
            )
        wanted = [channels[i] for i in taken]
        wanted = wanted if isinstance(index, (list, tuple)) else wanted[0]
        given = head['in_channels']
        if (list(given) if isinstance(given, (list, tuple)) else given) != wanted:
            changes[name] = dict(in_channels=wanted)
    return changes


def _code(value: Any) -> str:
    """A dict as a config file writes it."""
    if isinstance(value, dict):
        return f'dict({", ".join(f"{name}={_code(child)}" for name, child in value.items())})'
    return repr(value)
