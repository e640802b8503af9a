"""The projects of docs/own_data.md, run as they are printed: data, check, training, evaluation.

Scenarios: four projects x (check, training and test), the variant with pretrained weights, the
README's copy.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from mmlk.cli import checks
from mmlk.cli.config import load_config
from mmlk.cli.fit import check_fit
from mmlk.data.files import image_size
from mmlk.data.layout import check_datasets
from mmlk.data.scan import scan_datasets
from tests.tools.workbench import ROOT, call_tool, environment, scalars

PAGE = (ROOT / 'docs/own_data.md').read_text()
FILES = dict(re.findall(r'```python\n# (\S+)\n(.*?)```', PAGE, re.S))
COMMANDS = [
    line
    for block in re.findall(r'```sh\n(.*?)```', PAGE, re.S)
    for line in block.replace('\\\n', ' ').splitlines()
]
PROJECTS = ['discs_segmentation', 'discs_detection', 'discs_bands', 'discs_classes']
METRICS = dict(discs_detection='coco/bbox_mAP', discs_classes='accuracy/top1')
# Printed without data of its own.
EXAMPLES = ['pets']
# The same commands with fewer iterations.
SHORTER = {
    'max_iters=150': 'max_iters=2',
    'val_interval=150': 'val_interval=2',
    'iter_150': 'iter_2',
    'max_epochs=4': 'max_epochs=1',
    'val_begin=4': 'val_begin=1 train_dataloader.dataset.indices=8',
    'epoch_4': 'epoch_1',
    'max_epochs=3': 'max_epochs=1',
    'epoch_3': 'epoch_1',
}

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The page's files and the data that its script makes."""
    folder = tmp_path_factory.mktemp('own')
    for name, content in FILES.items():
        (folder / name).write_text(content)
    subprocess.run([sys.executable, 'make_examples.py'], cwd=folder, check=True)
    return folder


def test_the_page_prints_the_projects_and_their_commands():
    assert set(FILES) == {f'{name}.py' for name in ['make_examples', *PROJECTS, *EXAMPLES]}
    for name in PROJECTS:
        tools = [line.split()[1] for line in COMMANDS if f'{name}.py' in line]
        assert tools[:3] == ['tools/check_dataset.py', 'tools/train.py', 'tools/test.py']
        assert set(tools[3:]) <= {'tools/browse_dataset.py'}
        assert FILES[f'{name}.py'].count('\n') <= 18


def test_readme_prints_the_same_segmentation_project():
    assert FILES['discs_segmentation.py'] in (ROOT / 'README.md').read_text()


def test_the_script_makes_what_the_page_says(folder):
    labels = [np.asarray(Image.open(path)) for path in folder.glob('data/discs/labels/*/*.png')]
    assert len(labels) == 100
    assert set(np.unique(labels).tolist()) == {0, 1, 255}
    mmcv = pytest.importorskip('mmcv')
    bands = sorted(folder.glob('data/discs/bands/val/*.tif'))
    content = bands[0].read_bytes()
    loaded = mmcv.imfrombytes(content, flag='unchanged', backend='tifffile')
    assert loaded.shape == (128, 160, 4) and loaded.dtype == np.uint16
    assert image_size(content) == (128, 160)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['discs_segmentation', 'discs_bands'])
def test_samples_are_drawn(folder, monkeypatch, tmp_path, name):
    """By the commands of the first, as the page prints them; four bands are shown as three."""
    printed = [line for line in COMMANDS if 'browse_dataset' in line]
    assert len(printed) == 2
    for line in printed:
        _, tool, _, *flags = shlex.split(line.replace('--max-number 8', '--max-number 2'))
        flags[1] = tmp_path / flags[1]
        call_tool(Path(tool).name, f'{name}.py', *flags, monkeypatch=monkeypatch, cwd=folder)
        assert len(list(flags[1].glob('*.png'))) == 3
        if '--mode' in flags:
            assert Image.open(next(flags[1].glob('00000_*.png'))).size == (160, 128)


@pytest.mark.parametrize('name', PROJECTS)
def test_every_project_passes_the_check(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    cfg = load_config(f'{name}.py')
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    assert len(check_datasets(cfg, loaders)) == 3
    assert not any(is_problem for is_problem, _ in scan_datasets(cfg, loaders))


def test_the_variant_with_pretrained_weights_passes_the_check(folder, monkeypatch):
    monkeypatch.chdir(folder)
    base, heads = re.findall(r'`(_base_ = [^`]+|model = [^`]+)`', PAGE)
    _, *body, _ = FILES['discs_segmentation.py'].strip().splitlines()
    (folder / 'pretrained.py').write_text('\n'.join([base, *body, heads]))
    cfg = load_config('pretrained.py')
    assert len(check_datasets(cfg)) == 2
    assert cfg.model.auxiliary_head.num_classes == cfg.model.decode_head.num_classes == 2


def test_a_recipe_of_imagenet_takes_other_classes(folder, monkeypatch):
    """The example config as it is printed, on folders of its 37 classes."""
    monkeypatch.chdir(folder)
    for split in ('train', 'val'):
        for index in range(37):
            (folder / f'data/pets/{split}/{index:02d}').mkdir(parents=True)
            shutil.copy(
                folder / 'data/discs/classes/val/disc/000.png',
                folder / f'data/pets/{split}/{index:02d}',
            )
    cfg = load_config('pets.py')
    checks.check_class_counts(cfg)
    check_fit(cfg)
    found = check_datasets(cfg, ('train_dataloader', 'val_dataloader', 'test_dataloader'))
    assert [line.split(' in ')[0] for line in found] == [
        f'{loader}_dataloader: 37 samples' for loader in ('train', 'val', 'test')
    ]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        data = DATASETS.build(cfg.train_dataloader.dataset)
        assert len(data) == 37 and data[36]['data_samples'].gt_label.item() == 36


@pytest.mark.slow
@pytest.mark.parametrize('name', PROJECTS)
def test_the_printed_commands_train_and_evaluate(folder, name):
    for line in COMMANDS:
        if f'{name}.py' not in line or 'browse_dataset' in line:
            continue
        for long, short in SHORTER.items():
            line = line.replace(long, short)
        _, tool, *arguments = shlex.split(line)
        run = subprocess.run(
            [sys.executable, ROOT / tool, *arguments],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    metric = METRICS.get(name, 'mIoU')
    first, again = scalars(folder / 'work_dirs' / name, metric), []
    for report in (folder / 'work_dirs' / name).glob('*/*.json'):
        again += re.findall(rf'"{metric}": ([0-9.]+)', report.read_text())
    assert len(first) == 1 and [float(value) for value in again] == pytest.approx(first)
