"""Acting on another package's module at its import, so that importing mmlk need not import it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType


def call_after_execution(spec: ModuleSpec, action: Callable[[ModuleType], None]) -> ModuleSpec:
    """Have ``action`` called with the module of ``spec`` as soon as its code has been run."""
    execute = spec.loader.exec_module

    def execute_and_act(module: ModuleType) -> None:
        execute(module)
        action(module)

    spec.loader.exec_module = execute_and_act
    return spec
