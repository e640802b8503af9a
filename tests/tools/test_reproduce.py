"""Reproduction of a published row: from the authors' server to the verdict, and what may be missing."""

import dataclasses
import hashlib
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mmlk
from mmlk.checkpoints import download, zoo
from mmlk.cli import batch
from mmlk.cli.config import load_config
from mmlk.cli.program import main as program
from mmlk.data.releases import RELEASES
from tests.configs.test_configs import zoo_entry
from tests.file_server import serving
from tests.golden_dense import AuthorsNetwork
from tests.scripts import load_tool

ROOT = Path(__file__).parents[2]
ROW, FILE = 'fpn_recnext_m3_ade20k', 'recnext_m3_ade20k'


tool = load_tool('reproduce.py')


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes') / 'ade20k'
    options = ['--format', 'ade20k', '--train', '1', '--val', '2', '--size', '112x128']
    assert program(['generate-data', str(root), *options]) == 0
    return root


@pytest.fixture
def counts(monkeypatch):
    images = dict(train_dataloader=('images/training', 1), test_dataloader=('images/validation', 2))
    monkeypatch.setitem(tool.RELEASES, 'ade20k', RELEASES['ade20k']._replace(images=images))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The authors' file on a server that breaks the connection once; an empty cache."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    monkeypatch.setattr(download, '_WAITS', (0.0, 0.0))
    content = AuthorsNetwork('fpn_recnext_m3').write(tmp_path / 'authors.pth').read_bytes()
    with serving(content) as server:
        server.breaks = [20_000_000]
        entry = dataclasses.replace(zoo.ENTRIES[FILE], url=server.url(f'{FILE}.pth'))
        monkeypatch.setitem(zoo.ENTRIES, FILE, entry)
        yield server


@pytest.mark.slow
def test_from_the_authors_server_to_the_verdict(scenes, counts, published, tmp_path, capsys):
    loader = 'test_dataloader'
    options = [f'{loader}.num_workers=0', f'{loader}.persistent_workers=False']
    options.append(f'{loader}.dataset.pipeline.2.scale=(512,128)')  # a quarter, to be quick
    status = tool.main(
        [ROW, '--published', '--data-root', str(scenes), '--work-dir', str(tmp_path / 'run')]
        + ['--cfg-options', *options]
    )
    said = capsys.readouterr().out
    assert published.asked == [None, 'bytes=20000000-']
    assert hashlib.sha256(published.content).hexdigest() in said
    assert (tmp_path / 'hub/checkpoints' / f'{FILE}.pth').read_bytes() == published.content
    assert status == 1 and said.count('NOT reproduced') == 3, said
    assert 'mIoU                 40.98' in said and 'tolerance 0.1 points' in said
    assert "authors' log, last evaluation" in said


def test_verdict():
    figures = {'mIoU': 47.6, 'mIoU(ms+flip)': 49.0}
    told, good = tool.verdict(figures, {'mIoU': 47.7, 'mIoU(ms+flip)': 48.9}, True)
    assert good and told.count(' reproduced') == 2
    told, good = tool.verdict(figures, {'mIoU': 47.71, 'mIoU(ms+flip)': float('nan')}, True)
    assert not good and told.count('NOT reproduced') == 2
    told, good = tool.verdict(figures, {'mIoU': 47.6, 'mIoU(ms+flip)': 49.0}, False)
    assert not good and told.count('not comparable') == 2


def test_missing_data_and_too_few_images_are_named(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool.fetch, 'locate', None)  # nothing is downloaded in vain
    assert tool.main([ROW, '--published', '--data-root', str(tmp_path / 'nowhere')]) == 1
    said = capsys.readouterr().out
    assert 'Expected layout' in said and 'ADEChallengeData2016.zip' in said
    assert tool.main([ROW, '--published', '--data-root', str(scenes)]) == 1
    said = capsys.readouterr().out
    assert f'{scenes}/images/validation holds 2 images, the release has 2000' in said


def test_missing_disk_and_memory_are_named(scenes, counts, monkeypatch, capsys):
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: SimpleNamespace(free=1e8))
    monkeypatch.setattr(tool, 'available_memory', lambda: 1e9)
    assert tool.main([ROW, '--published', '--data-root', str(scenes)]) == 1
    said = capsys.readouterr().out
    assert 'has 0.1 GB left; up to 0.1 GB are needed for recnext_m3_ade20k (set TORCH_HOME)' in said
    assert 'memory: 1.0 GB are available; a process needs about 2.3 GB' in said


@pytest.mark.parametrize(
    'name', [ROW, 'upernet_slak_t_ade20k', 'cascade_mask_rcnn_dcls_convnext_b_coco']
)
def test_training_commands_have_the_batch_size_of_the_row(name, tmp_path, capsys):
    tool.main([name, '--from-pretrained', '--data-root', str(tmp_path)])
    said = capsys.readouterr().out.splitlines()
    assert [line[:7] for line in said if line[:3] in ('# t', '# m')] == ['# time:', '# memor']
    found = [shlex.split(line) for line in said if line.startswith(('sh ', 'python tools/train'))]
    assert [line[3] if line[0] == 'sh' else '1' for line in found] == ['8', '4', '1']
    for line, gpus in zip(found, (8, 4, 1), strict=True):
        cfg = load_config(mmlk.config_path(name))
        assert Path(line[2]) == Path('configs') / f'{name}.py'
        if '--accumulate' in line:
            batch.accumulate(cfg, int(line[line.index('--accumulate') + 1]))
        sizes = [word.split('=')[1] for word in line if word.startswith('train_dataloader.')]
        cfg.train_dataloader.batch_size = (
            int(sizes[0]) if sizes else cfg.train_dataloader.batch_size
        )
        assert batch.batch_statement(cfg, gpus)[0].endswith('as in the recipe.')
        assert f'data_root={tmp_path}' in line


def test_every_trained_network_of_the_zoo_belongs_to_a_row():
    files = tool.published_facts()['Checkpoints']
    dense = {name: entry for name, entry in zoo.ENTRIES.items() if entry.task != 'classification'}
    assert sorted(files.values()) == sorted(dense)
    rows = tool.dense_rows()
    for row, name in files.items():
        start = zoo_entry(rows[row]['Weights'])
        assert (start.family, start.arch) == (dense[name].family, dense[name].arch)
        assert row.endswith(dense[name].task) and rows[row]['Results']


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('fpn_recnext_m9_ade20k', "'fpn_recnext_m9_ade20k' is no row .* fpn_recnext_m3_ade20k"),
        (
            'fpn_inceptionnext_t_ade20k',
            'published no trained network of fpn_inceptionnext_t_ade20k',
        ),
    ],
)
def test_a_row_that_cannot_be_evaluated_is_refused(name, words):
    with pytest.raises(SystemExit, match=words):
        tool.main([name, '--published'])
