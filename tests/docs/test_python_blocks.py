"""Python blocks of the documents, run as they are printed.

A block is a file of a project (its first line names it; tests/data runs those projects), a config (it
has assignments alone), or a program. The programs of a page share their variables, as a reader's do.
"""

import ast
import inspect

import pytest
import torch

from mmlk import networks
from mmlk.checkpoints import zoo
from mmlk.cli.config import load_config
from mmlk.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS
from tests.data import test_own_projects
from tests.docs.pages import BLOCKS, Block

PYTHON = [each for found in BLOCKS.values() for each in found if each.language == 'python']
HOOKS_OF_FAMILIES = {
    name: settings['type']
    for family in networks.FAMILIES.values()
    for name, settings in getattr(family, 'required_hooks', {}).items()
}


def is_config(block):
    """Whether a block has assignments alone, none of which calls more than ``dict``."""
    tree = ast.parse(block.text)
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assigns = all(isinstance(node, ast.Assign) for node in tree.body)
    return assigns and calls <= {'dict', "__import__('mmlk').config_path", '__import__'}


CONFIGS = [each for each in PYTHON if not each.file and is_config(each)]
PROGRAMS = {
    page: [each for each in found if each in PYTHON and not each.file and each not in CONFIGS]
    for page, found in BLOCKS.items()
}


def label(block):
    return f'{block.page}:{block.line}'


def check_types(node, key=''):
    """Every type of this package exists and takes the arguments that stand beside it."""
    if isinstance(node, list | tuple):
        for each in node:
            check_types(each)
        return
    if not isinstance(node, dict):
        return
    kind = node.get('type') or HOOKS_OF_FAMILIES.get(key, '')
    if isinstance(kind, str) and kind.startswith('mmlk.'):
        found = [each.get(kind) for each in (MODELS, HOOKS, TRANSFORMS)]
        (target,) = filter(None, found)
        arguments = {name: value for name, value in node.items() if name != 'type'}
        inspect.signature(target).bind_partial(**arguments)
        if isinstance(target, type) and issubclass(target, networks.base.Network):
            arguments.pop('init_cfg', None)
            with torch.device('meta'):
                MODELS.build(dict(type=kind, **arguments))
    constructor = node.get('constructor', '')
    assert not constructor.startswith('mmlk.') or OPTIM_WRAPPER_CONSTRUCTORS.get(constructor)
    checkpoint = node.get('checkpoint')
    if isinstance(checkpoint, str) and checkpoint.startswith(zoo.SCHEME):
        zoo.find(checkpoint.removeprefix(zoo.SCHEME))
    for name, value in node.items():
        check_types(value, name)


def test_files_belong_to_the_projects_that_are_run():
    printed = {each.file: each.text for each in PYTHON if each.file}
    assert set(printed) == set(test_own_projects.FILES)
    assert all(text.endswith(test_own_projects.FILES[name]) for name, text in printed.items())


@pytest.mark.parametrize('block', CONFIGS, ids=label)
def test_config_blocks_load_and_name_what_exists(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'block.py').write_text(block.text)
    check_types(load_config('block.py').to_dict())


@pytest.mark.parametrize(
    ('text', 'error'),
    [
        ("model = dict(backbone=dict(type='mmlk.SLaK', archs='tiny'))", TypeError),
        ("model = dict(backbone=dict(type='mmlk.SLaK', arch='huge'))", ValueError),
        ("model = dict(backbone=dict(type='mmlk.SLak'))", ValueError),
        ('default_hooks = dict(sparse_mask=dict(densities=0.6))', TypeError),
        ("optim_wrapper = dict(constructor='mmlk.LayerDecay')", AssertionError),
        ("init_cfg = dict(type='Pretrained', checkpoint='mmlk://slak_huge')", ValueError),
    ],
)
def test_a_wrong_config_block_is_seen(text, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'block.py').write_text(text)
    with pytest.raises(error):
        check_types(load_config('block.py').to_dict())


@pytest.mark.slow
@pytest.mark.parametrize('page', [page for page, found in PROGRAMS.items() if found])
def test_programs_run_as_they_are_printed(page, reader):
    variables = {'__name__': page}
    for block in PROGRAMS[page]:
        for statement in ast.parse('\n' * block.line + block.text).body:
            run(statement, block, variables)


def run(statement, block, variables):
    """One statement; an expression whose comment is a literal has that value."""
    if not isinstance(statement, ast.Expr):
        exec(compile(ast.Module([statement], []), block.page, 'exec'), variables)
        return
    found = eval(compile(ast.Expression(statement.value), block.page, 'eval'), variables)
    line = block.text.splitlines()[statement.end_lineno - block.line - 1]
    try:
        expected = ast.literal_eval(line[statement.end_col_offset :].strip().lstrip('# '))
    except (SyntaxError, ValueError):
        return
    if isinstance(expected, list) and expected[-1:] == [...]:
        found, expected = found[: len(expected) - 1], expected[:-1]
    assert found == expected, f'{label(block)}: {line}'


@pytest.mark.parametrize('text', ['[1, 2][:1]    # [2]', 'sorted((2, 1))  # [1, 3, ...]'])
def test_a_wrong_value_in_a_comment_is_seen(text):
    with pytest.raises(AssertionError):
        run(ast.parse(f'\n{text}').body[0], Block('page', 1, 'python', text), {})
