"""Who may import whom: each row imports a module in a fresh interpreter, then looks around."""

import importlib.util
import subprocess
import sys

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
    'mmlk.backbones': [*OPENMMLAB, 'mmlk.ops.triton'],
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
