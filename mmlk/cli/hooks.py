"""Hooks that a training needs whatever its config lists, brought by the tool and said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from mmlk.registry import MODELS

_WATCH = ('finite_loss', dict(type='mmlk.FiniteLossHook'), 'a loss that is no number ends the run')


def bring_hooks(cfg: Config) -> list[str]:
    """Add the hooks that the model's backbone requires, and the watch on the loss, in place.

    A config that inherits and sets ``custom_hooks`` replaces the whole list, so what a family needs
    to train rightly is declared by the backbone (``required_hooks``). A hook of the same type that is
    there already stays; ``default_hooks=dict(<name>=None)`` leaves one out.

    Returns:
        One sentence per hook that was added or left out, for the log.
    """
    defaults = cfg.setdefault('default_hooks', {})
    present = {_type(hook) for hook in [*defaults.values(), *(cfg.get('custom_hooks') or [])]}
    notes = []
    for name, hook, reason in [*_required(cfg.get('model')), _WATCH]:
        if name in defaults and defaults[name] is None:
            del defaults[name]
            notes.append(f'{_type(hook)} is left out, as default_hooks.{name}=None says.')
        elif _type(hook) not in present:
            present.add(_type(hook))
            cfg.merge_from_dict({f'default_hooks.{name}': hook})
            notes.append(
                f'Hook {hook["type"]} added: {reason}; default_hooks=dict({name}=None) leaves it out.'
            )
    return notes


def _required(node: Any) -> Iterator[tuple[str, dict, str]]:
    """(name, hook, reason) for every backbone of this package under ``node``."""
    if isinstance(node, dict):
        kind = _backbone(node.get('type'))
        for name, hook in getattr(kind, 'required_hooks', {}).items():
            yield name, dict(hook), f'{kind.__name__} needs it to train rightly'
        node = list(node.values())
    for child in node if isinstance(node, (list, tuple)) else ():
        yield from _required(child)


def _backbone(kind: Any) -> type | None:
    if isinstance(kind, str):
        return MODELS.get(kind) if kind.startswith('mmlk.') else None
    return kind


def _type(hook: Any) -> str:
    """Name of a hook's class, without scope."""
    kind = hook.get('type', '') if isinstance(hook, dict) else type(hook)
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]
