"""Variables that an inheriting config sets without effect.

MMEngine runs a base config to its end before the inheriting file begins. A variable of the base
(``vis_backends``, ``crop_size``, ``data_root``) has been copied to its places by then, and setting it
anew changes nothing, without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmlk import compat
from mmlk.configs import config_root

_SHOWN = 6


def check_variables(file: Path, read_keys: frozenset[str]) -> None:
    """Refuse a config that sets a variable of its base which is read nowhere.

    Configs of this package are not looked at, nor are those in MMEngine's pure-Python style, whose
    variables are imported.

    Args:
        file: The config.
        read_keys: Top-level keys that are read themselves.

    Raises:
        ValueError: Naming the variable, the places that keep the old value, and the lines to write.
    """
    if file.suffix != '.py' or config_root() in file.resolve().parents:
        return
    bases = compat.base_configs(Config, file)
    if not bases:
        return
    cfg, before = _settings(file), {}
    for base in bases:
        check_variables(base, read_keys)
        before.update(_settings(base))
    for name, old in before.items():
        if name in read_keys or name not in cfg or cfg[name] == old:
            continue
        if any(places(cfg[key], cfg[name], key) for key in cfg if key in read_keys):
            continue
        kept = [
            place for key in before if key in read_keys for place in places(before[key], old, key)
        ]
        if kept:
            raise ValueError(
                f'{file}: {name} is a variable of the base config, which has copied it to '
                f'{", ".join(kept[:_SHOWN])}; setting it here changes nothing. Write '
                f'{"; ".join(_line(place, name) for place in kept[:_SHOWN])}'
            )


def _settings(file: Path) -> dict:
    """All settings of a config, without the scopes that MMEngine notes in those of other packages."""
    return _unscoped(Config.fromfile(str(file)).to_dict())


def _unscoped(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _unscoped(value) for key, value in node.items() if key != '_scope_'}
    if isinstance(node, (list, tuple)):
        return type(node)(map(_unscoped, node))
    return node


def places(node: Any, value: Any, path: str) -> list[str]:
    """Dotted keys at and under ``node`` that hold ``value``."""
    if type(node) is type(value) and node == value:
        return [path]
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, (list, tuple))
        else ()
    )
    return [place for name, child in items for place in places(child, value, f'{path}.{name}')]


def _line(place: str, name: str) -> str:
    """The assignment that brings ``name`` to a dotted key."""
    first, *parts = place.split('.')
    index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if index is not None:
        return f'{".".join([first, *parts[:index]])} anew (a list is replaced as a whole)'
    value = name
    for part in reversed(parts):
        value = f'dict({part}={value})'
    return f'{first} = {value}'
