"""Modules that got another class, which computes the same, and get their own one back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


class Swapped:
    """Mixin of the classes that a module gets for a while; they are never constructed."""

    own_class: type[nn.Module]


def swap(module: nn.Module, kind: type[nn.Module]) -> None:
    """Give a module the class ``kind``, one of `Swapped`."""
    own_class, module.__class__ = module.__class__, kind
    module.own_class = own_class


def is_swapped(module: nn.Module) -> bool:
    """Whether it has the class that it got, or one made around that since."""
    return isinstance(module, Swapped)


def give_back(modules: Mapping[nn.Module, str]) -> None:
    """Give modules, with their names, their own class back; those that have it stay.

    Raises:
        ValueError: If one was parametrised since; none is changed then.
    """
    found = [module for module in modules if is_swapped(module)]
    for module in found:
        if Swapped not in type(module).__bases__:
            raise ValueError(
                f'restore: {modules[module]} became a {type(module).__name__} since it was '
                'accelerated; undo that first (torch.nn.utils.parametrize.remove_parametrizations)'
            )
    for module in found:
        module.__class__ = module.own_class
        del module.own_class
