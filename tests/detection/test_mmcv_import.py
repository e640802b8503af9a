"""How ``mmcv._ext`` is found once mmlk has been imported: compiled first, torchvision's otherwise."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import mmdet
import pytest
import torch

from mmlk.mmcv_ops import importing
from tests.detection.detectors import on_scenes, small_config
from tests.tools.workbench import ROOT, environment

COMPILED = (
    'def roi_align_forward(features, rois, **options):\n    return features.layout + rois.layout\n'
)


@pytest.fixture
def ask(tmp_path):
    """Runs a program in a new interpreter that has an mmcv of its own, and reads what it prints."""

    def ask(program: str, compiled: bool, **variables: str) -> str:
        package = tmp_path / 'mmcv'
        package.mkdir()
        (package / '__init__.py').touch()
        if compiled:
            (package / '_ext.py').write_text(COMPILED)
        # From the standard library and the checkout alone: torch and torchvision are not found.
        (tmp_path / 'torchvision').mkdir()
        (tmp_path / 'torchvision' / '__init__.py').write_text('raise RuntimeError("imported")\n')
        done = subprocess.run(
            [sys.executable, '-S', '-c', program],
            text=True,
            capture_output=True,
            cwd=tmp_path,
            env=dict(os.environ, PYTHONPATH=f'{tmp_path}{os.pathsep}{ROOT}', **variables),
        )
        return done.stdout.strip() if done.returncode == 0 else done.stderr

    return ask


LOOK = (
    'from importlib.util import find_spec; print(getattr(find_spec("mmcv._ext"), "origin", None))'
)
SUBSTITUTE = str(ROOT / 'mmlk/mmcv_ops/extension.py')


def test_nothing_is_answered_without_mmlk(ask):
    assert ask(LOOK, compiled=False) == 'None'


def test_torchvision_answers_where_nothing_is_compiled(ask):
    assert ask(f'import mmlk; {LOOK}', compiled=False) == SUBSTITUTE


def test_compiled_operators_stay(ask, tmp_path):
    assert ask(f'import mmlk; {LOOK}', compiled=True) == str(tmp_path / 'mmcv/_ext.py')


def test_the_switch_prefers_torchvision(ask):
    assert ask(f'import mmlk; {LOOK}', compiled=True, MMLK_MMCV_OPS='torchvision') == SUBSTITUTE


def test_without_torchvision_the_module_stays_missing(ask):
    program = f'import sys; sys.modules["torchvision"] = None; import mmlk; {LOOK}; '
    assert ask(f'{program} print(mmlk.mmcv_ops.source())', compiled=False) == 'None\nNone'


def test_a_wrong_value_of_the_switch_is_named(ask):
    answer = ask('import mmlk, mmcv._ext', compiled=True, MMLK_MMCV_OPS='tv')
    assert "MMLK_MMCV_OPS='tv'" in answer


def test_the_switch_is_refused_when_it_comes_too_late(ask):
    answer = ask('import mmcv._ext, mmlk', compiled=True, MMLK_MMCV_OPS='torchvision')
    assert 'import mmlk before mmcv.ops' in answer


CALL = """
class Map:
    layout = 'strided '
    def contiguous(self):
        same = Map()
        same.layout = 'contiguous '
        return same
print(mmcv._ext.roi_align_forward(Map(), Map(), aligned=True))
"""


@pytest.mark.parametrize('order', ['mmlk, mmcv._ext', 'mmcv._ext, mmlk'])
def test_compiled_operators_get_contiguous_maps(ask, order):
    assert ask(f'import {order}{CALL}', compiled=True) == 'contiguous contiguous'


def test_compiled_operators_are_guarded_once():
    module = types.SimpleNamespace(roi_align_forward=lambda features, regions: features)
    importing._guard(module)
    guarded = module.roi_align_forward
    importing._guard(module)
    assert module.roi_align_forward is guarded
    assert guarded(torch.zeros(2, 3).T, torch.zeros(1)).is_contiguous()


def test_a_detector_imported_before_is_warned_about(ask, tmp_path):
    for name in ('mmdet', 'mmdet/structures', 'mmdet/structures/mask'):
        (tmp_path / name).mkdir()
        (tmp_path / name / '__init__.py').touch()
    program = (
        'import warnings; warnings.simplefilter("error"); import mmdet.structures.mask; import mmlk'
    )
    assert 'python -m mmlk.run SCRIPT' in ask(program, compiled=False)


def test_run_needs_a_script():
    done = subprocess.run(
        [sys.executable, '-m', 'mmlk.run'], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1 and 'usage: python -m mmlk.run SCRIPT' in done.stderr


def test_run_starts_a_script_as_if_alone(tmp_path):
    (tmp_path / 'beside.py').write_text('word = "beside"')
    (tmp_path / 'script.py').write_text(
        'import json, sys, beside\n'
        'print(json.dumps([__name__, sys.argv, beside.word, "mmlk" in sys.modules]))\n'
    )
    done = subprocess.run(
        [sys.executable, '-m', 'mmlk.run', str(tmp_path / 'script.py'), '--flag', 'x'],
        capture_output=True,
        text=True,
        env=environment(),
    )
    script = str(tmp_path / 'script.py')
    assert json.loads(done.stdout) == ['__main__', [script, '--flag', 'x'], 'beside', True]


@pytest.mark.slow
def test_mmdetections_own_script_trains_on_torchvisions_operators(generated, tmp_path):
    config = on_scenes(small_config('mask_rcnn_recnext_m3_coco.py'), generated, tmp_path / 'run')
    config.default_hooks.logger.interval = 1
    config.train_cfg.val_interval = 10
    config.model.backbone.pop('norm_cfg', None)
    config.model = json.loads(json.dumps(config.model.to_dict()).replace('"SyncBN"', '"BN"'))
    config.dump(tmp_path / 'config.py')
    script = Path(mmdet.__file__).parent / '.mim/tools/train.py'
    done = subprocess.run(
        [sys.executable, '-m', 'mmlk.run', str(script), str(tmp_path / 'config.py')],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(MMLK_MMCV_OPS='torchvision'),
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert (tmp_path / 'run/epoch_1.pth').is_file()
