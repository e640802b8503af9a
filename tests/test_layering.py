"""Who may import whom: by what the files say, and by what an import brings in a fresh interpreter."""

import ast
import functools
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

OPENMMLAB = ['mmcv', 'mmseg', 'mmdet', 'mmpretrain', 'timm']
RULES = {
    'mmlk': ['torch', 'numpy', 'mmengine', *OPENMMLAB],
    'mmlk.configs': ['torch', 'mmengine', *OPENMMLAB],
    'mmlk.mmcv_ops': ['torch', 'torchvision', 'numpy', 'mmengine', *OPENMMLAB],
    'mmlk.ops': [
        'mmengine',
        *OPENMMLAB,
        'mmlk.layers',
        'mmlk.backbones',
        'mmlk.registry',
        'mmlk.ops.triton',
    ],
    'mmlk.ops.triton.runtime': [
        'mmengine',
        *OPENMMLAB,
        'mmlk.layers',
        'mmlk.backbones',
        'mmlk.registry',
    ],
    'mmlk.layers': ['mmengine', *OPENMMLAB, 'mmlk.backbones', 'mmlk.registry', 'mmlk.ops.triton'],
    'mmlk.checkpoints.load': ['mmengine', *OPENMMLAB, 'mmlk.backbones', 'mmlk.ops'],
    'mmlk.checkpoints.zoo': ['torch', 'mmengine', *OPENMMLAB],
    'mmlk.checkpoints.keymaps': ['torch', 'mmengine', *OPENMMLAB],
    'mmlk.networks': ['mmengine', *OPENMMLAB, 'mmlk.backbones', 'mmlk.registry', 'mmlk.ops.triton'],
    'mmlk.heads': ['mmengine', *OPENMMLAB, 'mmlk.backbones', 'mmlk.registry', 'mmlk.ops.triton'],
    'mmlk.checkpoints.classifiers': ['mmengine', *OPENMMLAB, 'mmlk.backbones', 'mmlk.ops'],
    'mmlk.surgery': ['mmengine', *OPENMMLAB, 'mmlk.backbones', 'mmlk.registry', 'mmlk.ops.triton'],
    'mmlk.models.create': ['mmengine', *OPENMMLAB, 'mmlk.backbones', 'mmlk.registry'],
    'mmlk.models.names': ['torch', 'numpy', 'mmengine', *OPENMMLAB],
    'mmlk.registry': ['mmlk.classification', *OPENMMLAB],
    'mmlk.backbones': [*OPENMMLAB, 'mmlk.ops.triton'],
    'mmlk.cli.program': ['torch', 'numpy', 'mmengine', *OPENMMLAB],
    'mmlk.commands.models': ['torch', 'numpy', 'mmengine', *OPENMMLAB],
    **{
        f'mmlk.commands.{name}': ['torch', *OPENMMLAB]
        for name in ('train', 'test', 'predict', 'export', 'publish', 'check_data', 'flops')
    },
    'mmlk.inference.sources': ['torch', 'mmengine', *OPENMMLAB],
    'mmlk.inference.load': ['mmengine', *OPENMMLAB],
    'mmlk.inference.exported': ['mmengine', *OPENMMLAB],
    'mmlk.cli.config': ['torch', *OPENMMLAB],
    'mmlk.cli.checkpoint': ['torch', *OPENMMLAB],
    'mmlk.cli.device': ['mmlk.ops', 'mmlk.backbones', *OPENMMLAB],
    'mmlk.engine': ['mmlk.ops', 'mmlk.backbones', 'mmseg', 'mmdet', 'mmpretrain', 'timm'],
}


NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec('triton') is None, reason='triton is not installed'
)


@pytest.mark.parametrize(
    'module',
    [pytest.param(module, marks=NEEDS_TRITON if 'triton' in module else ()) for module in RULES],
)
def test_module_brings_nothing_it_should_not(module):
    program = (
        f'import sys, {module}; print([name for name in {RULES[module]!r} if name in sys.modules])'
    )
    run = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == '[]'
    assert run.stderr == '', 'import is not silent'


ROOT = Path(__file__).resolve().parents[1]
OPERATORS = (
    'layout',
    'depthwise',
    'norm',
    'dense',
    'inception',
    'large_kernel',
    'dcls',
    'recconv',
    'blocks',
)
"""Folders of operators, lowest first: none imports one that comes later."""
SHARED = (
    'compat',
    'dispatch',
    'library',
    'maps',
    'memory',
    'packed_weights',
    'plans',
    'reference',
    'states',
    'modules',
    'jit',
    'triton',
    'cuda',
)
"""What the operators share; it knows none of them."""
FOLDERS = {
    # folder of mmlk: the other folders and top-level modules of mmlk that it may import
    'ops': (),
    'layers': ('ops',),
    'checkpoints': ('compat',),
    'networks': ('ops', 'layers', 'checkpoints'),
    'backbones': ('networks', 'ops', 'checkpoints', 'surgery', 'registry'),
    'heads': ('layers', 'checkpoints'),
    'surgery': ('ops', 'compat'),
    'classification': ('heads', 'checkpoints', 'registry'),
    'models': ('ops', 'networks', 'heads', 'checkpoints', 'surgery'),
    'timm': ('models',),
    'mmcv_ops': ('compat', 'import_hooks'),
    'data': ('registry', 'compat'),
    'engine': ('checkpoints', 'registry', 'compat'),
    'export': ('cli', 'data'),
    'inference': ('checkpoints', 'cli', 'configs', 'data', 'export', 'models', 'registry'),
    'analysis': ('cli', 'configs', 'data', 'inference'),
}
FIXED_NAMES = {'loops', 'triton'}


def imports(path):
    """Modules of mmlk that a file imports, wherever in it: (imported module, line)."""
    module = '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(each.name, node.lineno) for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}:{node.lineno}: a relative import'
            names = [f'{node.module}.{each.name}' for each in node.names]
            known = [name for name in names if exists(name)]
            found += [(name, node.lineno) for name in known]
            if len(known) < len(names):
                found.append((node.module, node.lineno))
    return [
        (name, line)
        for name, line in found
        if name.split('.')[0] == 'mmlk' and name not in ('mmlk', module)
    ]


def exists(module):
    path = ROOT.joinpath(*module.split('.'))
    return path.with_suffix('.py').is_file() or (path / '__init__.py').is_file()


def violations(path):
    """What a file imports against the rules, in words."""
    parts = path.relative_to(ROOT / 'mmlk').parts
    home = parts[0].removesuffix('.py')
    for name, line in imports(path):
        target = name.split('.')[1:]
        where = f'{"/".join(parts)}:{line} imports {name}'
        if home in FOLDERS and target[0] not in (home, *FOLDERS[home]):
            yield f'{where}: {home} may import {FOLDERS[home]} only'
        if (
            home != 'ops'
            and target[0] == 'ops'
            and any(
                each.split('_')[0] in ('loops', 'triton', 'jit', 'cpu', 'cuda')
                for each in target[1:]
            )
            and home
            in ('layers', 'networks', 'backbones', 'checkpoints', 'engine', 'data', 'surgery')
        ):
            yield f"{where}: kernels and policies are the operators' own"
        if home != 'ops' or len(parts) < 2 or target[0] != 'ops' or len(target) < 2:
            continue
        folder, other = parts[1].removesuffix('.py'), target[1]
        if folder in SHARED and other in OPERATORS:
            yield f'{where}: what operators share knows none of them'
        if folder in OPERATORS and other in OPERATORS:
            if OPERATORS.index(other) > OPERATORS.index(folder):
                yield f'{where}: {other} is above {folder}'
        if (
            parts[-1] == '__init__.py'
            and folder in OPERATORS
            and target[-1].split('_')[0] in ('loops', 'triton', 'cpu', 'cuda')
        ):
            yield f'{where}: what users call knows no device'


def files(folder='mmlk'):
    return sorted((ROOT / folder).rglob('*.py'))


@pytest.mark.parametrize('path', files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_is_below_it(path):
    assert not list(violations(path))


def test_every_folder_of_operators_has_its_place():
    folders = {
        path.name for path in (ROOT / 'mmlk/ops').iterdir() if (path / '__init__.py').is_file()
    }
    assert folders == {*OPERATORS, 'jit', 'triton'}


def test_files_of_operators_have_fixed_names():
    """A reader who knows the operator and the question knows the file."""
    answers = (
        '__init__',
        'schema',
        'cpu',
        'cuda',
        'loops',
        'triton',
        'modules',
        'node',
        'torch_routes',
    )
    extra = {
        'depthwise': {'expanding'},
        'large_kernel': {'normed'},
        'dcls': {'construct', 'separable'},
        'dense': {'channel_mlp', 'folded_linear', 'patches', 'pointwise', 'products'},
        'norm': {'batch_norm', 'layer_norm'},
        'blocks': {'attention', 'conv_norm_mlp', 'depthwise_sum'},
    }
    for folder in OPERATORS:
        for path in (ROOT / 'mmlk/ops' / folder).glob('*.py'):
            name = path.stem
            base = name.split('_')[0] if name.startswith(('loops', 'triton')) else name
            assert base in answers or name in extra.get(folder, ()), path


@pytest.mark.parametrize(
    ('path', 'line', 'message'),
    [
        ('mmlk/layers/mlp.py', 'from mmlk.ops.jit import engine', "the operators' own"),
        ('mmlk/layers/mlp.py', 'from mmlk.networks import SLaK', 'may import'),
        ('mmlk/ops/dispatch.py', 'from mmlk.ops.recconv import loops', 'knows none of them'),
        ('mmlk/ops/depthwise/cpu.py', 'import mmlk.ops.inception', 'is above'),
        ('mmlk/ops/recconv/__init__.py', 'from mmlk.ops.recconv import cpu', 'knows no device'),
        ('mmlk/networks/slak.py', 'import mmlk.registry', 'may import'),
    ],
)
def test_the_rules_can_fail(path, line, message, monkeypatch):
    text = Path.read_text
    monkeypatch.setattr(Path, 'read_text', lambda self, *a, **k: f'{line}\n')
    found = list(violations(ROOT / path))
    monkeypatch.setattr(Path, 'read_text', text)
    assert any(message in each for each in found)


def test_autograd_nodes_are_written_in_one_way():
    """`mmlk.ops.library` makes every node with a gradient formula of ours."""
    places = {
        str(path.relative_to(ROOT)) for path in files() if 'autograd.Function' in path.read_text()
    }
    assert places == {'mmlk/ops/library.py'}


COMPAT = ('mmlk/compat.py', 'mmlk/ops/compat.py', 'mmlk/ops/triton/compat.py')
"""Where private names of other packages may stand."""
KEPT = {
    # Hooks of nn.Module, which torch names in public from 2.5 on only, and what its hooks are kept in.
    '_register_load_state_dict_pre_hook',
    '_register_state_dict_hook',
    '_load_state_dict_pre_hooks',
    '_forward_pre_hooks',
    # Versions of the modules in a state dict; the base of all batch norms; writes that autograd counts.
    '_metadata',
    '_BatchNorm',
    '_version',
    # For subclasses of MMEngine's BaseModule and MMPretrain's ClsHead.
    '_params_init_info',
    '_get_loss',
    # Methods of named tuples, which Python documents.
    '_replace',
    '_asdict',
}
"""Private by name, and public in use."""


def private_names(tree):
    """Private names that a file reads from objects or imports: (name, line)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [each.name for each in node.names]
        else:
            continue
        for name in names:
            if name.startswith('_') and not name.startswith('__') and name not in KEPT:
                yield name, node.lineno


def own_names(tree):
    """Names that a file defines: functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == 'self':
                yield node.attr


@functools.cache
def names_of_the_package():
    """`own_names` of all files but those of `COMPAT`."""
    trees = (
        ast.parse(path.read_text()) for path in files() if str(path.relative_to(ROOT)) not in COMPAT
    )
    return {name for tree in trees for name in own_names(tree)}


def test_private_names_of_other_packages_stand_in_compat_alone():
    own = names_of_the_package()
    assert not [
        f'{path.relative_to(ROOT)}:{line} uses {name}: through {COMPAT}'
        for path in files()
        if str(path.relative_to(ROOT)) not in COMPAT
        for name, line in private_names(ast.parse(path.read_text()))
        if name not in own
    ]


@pytest.mark.parametrize(
    'line',
    [
        'import torch; torch._C._len_torch_dispatch_stack()',
        'import torch; torch.ops.mkldnn._linear_pointwise',
        'from mmengine.config import Config; Config._is_lazy_import',
        'from triton.runtime.jit import _triton_jit_function',
        'def f(kernel): return kernel._pack_args',
    ],
)
def test_private_names_are_found(line):
    names = {name for name, _ in private_names(ast.parse(line))}
    assert names - names_of_the_package()
