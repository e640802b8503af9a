"""The scripts of ``tools`` as modules, for tests that call their functions."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def load_tool(name: str) -> ModuleType:
    """The script ``tools/<name>``, imported anew and under no name that another import could meet."""
    path = ROOT / 'tools' / name
    spec = importlib.util.spec_from_file_location(f'mmlk_tool_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
