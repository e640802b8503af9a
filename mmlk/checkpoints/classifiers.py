"""Classifiers as their authors and timm publish them, and as a model of backbone and head has them.

A published file has one level of names. MMPretrain's ``ImageClassifier`` keeps the trunk under
``backbone.`` and the head under ``head.``; both check what reaches them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping

from torch import Tensor

from mmlk.checkpoints.keymaps import BACKBONE_PREFIX, common_wrapper, family_of
from mmlk.checkpoints.read import CONTAINERS

HEAD_PREFIX = 'head.'
"""Prefix of the head in MMPretrain's checkpoints."""

START_FROM_OTHER_TASK = (
    'to start from the file of another task, give it to the backbone: init_cfg=dict('
    "type='Pretrained', checkpoint=...), with prefix='backbone.' where it holds a whole model"
)

_MLP = re.compile(r'head\.(?P<name>(?:fc1|norm|fc2)\..+)')
_NORM_LINEAR = re.compile(r'(?P<name>(?:norm|head)\.\w+)$')
_TWO_BRANCHES = re.compile(r'head\.(?P<name>(?:head|head_dist)\..+)')
HEAD_KEYS: Mapping[str, re.Pattern] = {
    'inceptionnext': _MLP,
    'slak': _NORM_LINEAR,
    'dcls_convnext': _NORM_LINEAR,
    'recnext': _TWO_BRANCHES,
    'replknet': _NORM_LINEAR,
    'unireplknet': _NORM_LINEAR,
}
"""Keys of a family's published heads; the group ``name`` is the key inside the head."""


def split_classifier(family: str, keys: Iterable[str]) -> dict[str, str]:
    """Name in an ``ImageClassifier`` of every key of a published classifier.

    Args:
        family: Name in :data:`mmlk.checkpoints.keymaps.FAMILIES`.
        keys: All keys of the file, wrapped (``module.``) or not. Keys that already have the two
            prefixes keep their names.

    Raises:
        ValueError: If the family is unknown.
    """
    family_of(family)
    keys = list(keys)
    wrapper = common_wrapper(keys)
    names = {key: key[len(wrapper) :] for key in keys}
    if any(name.startswith(BACKBONE_PREFIX) for name in names.values()):
        return names
    pattern, split = HEAD_KEYS[family], {}
    for key, name in names.items():
        found = pattern.match(name)
        split[key] = HEAD_PREFIX + found['name'] if found else BACKBONE_PREFIX + name
    return split


def join_classifier(family: str, keys: Iterable[str]) -> dict[str, str]:
    """Published name of every key of an ``ImageClassifier``, the inverse of :func:`split_classifier`.

    Args:
        family: Name in :data:`mmlk.checkpoints.keymaps.FAMILIES`.
        keys: Keys that start with ``backbone.`` or ``head.``.

    Raises:
        ValueError: If the family is unknown, or a key belongs to neither part.
    """
    family_of(family)
    # the norm and the linear layer of this head stand beside the trunk, not below a module of theirs
    head = '' if HEAD_KEYS[family] is _NORM_LINEAR else HEAD_PREFIX
    joined = {}
    for key in keys:
        if key.startswith(BACKBONE_PREFIX):
            joined[key] = key[len(BACKBONE_PREFIX) :]
        elif key.startswith(HEAD_PREFIX):
            joined[key] = head + key[len(HEAD_PREFIX) :]
        else:
            raise ValueError(f'join_classifier: {key!r} is of no backbone and of no head')
    return joined


def split_in_place(family: str, state_dict: MutableMapping[str, Tensor], prefix: str = '') -> None:
    """Give the keys under ``prefix`` the names of an ``ImageClassifier``.

    Meant for a load_state_dict pre-hook of the classifier. A trainer's file, whose state dict is one
    of several entries, is unwrapped first, since MMEngine hands it on whole.

    Raises:
        ValueError: If the file holds a model for another task.
    """
    if not prefix:
        _unwrap(state_dict)
    given = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
    split = split_classifier(family, [key[len(prefix) :] for key in given])
    parts = {name.split('.', 1)[0] for name in split.values()}
    if 'head' not in parts and parts > {'backbone'}:
        raise ValueError(
            f'split_in_place: the file holds {", ".join(sorted(parts)[:6])} and no classifier; '
            + START_FROM_OTHER_TASK
        )
    for key, value in given.items():
        name = prefix + split[key[len(prefix) :]]
        if name != key:
            del state_dict[key]
            state_dict[name] = value


def _unwrap(state_dict: MutableMapping) -> None:
    found = next((name for name in CONTAINERS if isinstance(state_dict.get(name), Mapping)), None)
    if found is not None:
        content = state_dict[found]
        state_dict.clear()
        state_dict.update(content)
