"""What the package says to users holds wherever it is installed, also where there is no checkout."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ONLY_IN_A_CHECKOUT = re.compile(
    r'\b(?:tools|docs|tests)/|setup_env|dist_(?:train|test)|\bmake [a-z]+-?[a-z]*\)|Makefile|'
    rf'\b(?:{"|".join(path.name for path in (ROOT / "tools").glob("*.py"))})\b'
)


def strings(tree):
    """(text, line) of every string that a user can meet: all but documentation of code."""
    documentation = set()
    for node in ast.walk(tree):
        body = getattr(node, 'body', None)
        for child in body if isinstance(body, list) else ():
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                documentation.add(id(child.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in documentation:
                yield node.value, node.lineno


def faults(path):
    tree = ast.parse(path.read_text())
    said = list(strings(tree))
    if path.parent.name == 'commands':  # the help text of the command
        said.append((ast.get_docstring(tree) or '', 1))
    return [
        f'{path.relative_to(ROOT)}:{line}: {text}'
        for text, line in said
        if ONLY_IN_A_CHECKOUT.search(text)
    ]


@pytest.mark.parametrize('folder', sorted(p.name for p in (ROOT / 'mmlk').iterdir() if p.is_dir()))
def test_messages_name_no_file_that_only_a_checkout_has(folder):
    assert not [fault for path in (ROOT / 'mmlk' / folder).rglob('*.py') for fault in faults(path)]


def test_messages_of_top_level_modules_name_none():
    assert not [fault for path in (ROOT / 'mmlk').glob('*.py') for fault in faults(path)]


@pytest.mark.parametrize(
    'text',
    ['see tools/doctor.py', 'sh tools/setup_env.sh ops', '(make setup-ops)', 'doctor.py says'],
)
def test_such_messages_are_found(text):
    assert ONLY_IN_A_CHECKOUT.search(text)
