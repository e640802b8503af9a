"""A published file: what it holds, and what other programs make of it."""

import hashlib
import re

import numpy as np
import pytest
import torch

import mmlk
from mmlk.cli import program
from tests.commands.conftest import CLASSES, PALETTE


@pytest.fixture
def published(trained, tmp_path):
    words = ['publish', str(trained / 'last_checkpoint'), '--out', str(tmp_path)]
    words += ['--metric', 'mIoU=47.5', 'aAcc=80', '--licence', 'Apache-2.0']
    assert program.main(words) == 0
    (file,) = tmp_path.glob('*.pth')
    return file


def test_file_describes_itself(published, trained):
    assert re.fullmatch(r'tiny-[0-9a-f]{8}\.pth', published.name)
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    assert published.stem.split('-')[1] == digest[:8]
    content = torch.load(published, weights_only=True)
    assert set(content) == {'state_dict', 'meta'}
    meta = content['meta']
    assert meta['dataset_meta'] == dict(classes=list(CLASSES), palette=PALETTE)
    assert meta['metrics'] == dict(mIoU=47.5, aAcc=80.0)
    assert meta['licence'] == 'Apache-2.0' and meta['iter'] == 4
    assert meta['versions']['mmlk'] == mmlk.__version__ and 'torch' in meta['versions']
    assert 'work_dir' not in meta['cfg']
    before = torch.load(trained / 'iter_4.pth', weights_only=False)['state_dict']
    assert list(content['state_dict']) == list(before)
    assert all(torch.equal(content['state_dict'][key], before[key]) for key in before)


def test_a_file_published_again_keeps_what_is_known_of_it(published, tmp_path):
    assert program.main(['publish', str(published), '--out', str(tmp_path / 'again')]) == 0
    (again,) = (tmp_path / 'again').iterdir()
    assert re.fullmatch(r'tiny-[0-9a-f]{8}\.pth', again.name)
    before, after = (torch.load(each, weights_only=True)['meta'] for each in (published, again))
    assert after['metrics'] == before['metrics'] and after['licence'] == 'Apache-2.0'


def test_the_same_predictions_with_and_without_the_config(published, trained, photos):
    original = mmlk.load_model(trained / 'tiny.py', trained / 'iter_4.pth', device='cpu')
    alone = mmlk.load_model(published, device='cpu')
    labels = [model.predict(photos / 'a.png')[0].labels for model in (original, alone)]
    assert np.array_equal(*labels)


def test_mmseg_names_the_right_classes(published, photos):
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(None, weights=str(published), device='cpu', show_progress=False)
    assert tuple(inferencer.model.dataset_meta['classes']) == CLASSES
    assert inferencer.model.dataset_meta['palette'] == PALETTE
    found = inferencer(str(photos / 'a.png'), return_datasamples=True).pred_sem_seg.data[0]
    ours = mmlk.load_model(published, device='cpu').predict(photos / 'a.png')[0]
    assert np.array_equal(found.numpy(), ours.labels)


def test_auxiliary_head_without_weights_is_left_out(trained, tmp_path):
    """A published file must not hold random weights."""
    content = torch.load(trained / 'iter_4.pth', weights_only=False)
    head = "auxiliary_head = dict(model['decode_head'])"
    config = (
        trained / 'tiny.py'
    ).read_text() + f"{head}\nmodel['auxiliary_head'] = auxiliary_head\n"
    (tmp_path / 'two_heads.py').write_text(config)
    torch.save(content, tmp_path / 'one_head.pth')
    words = ['publish', str(tmp_path / 'one_head.pth'), '--config', str(tmp_path / 'two_heads.py')]
    assert program.main([*words, '--out', str(tmp_path / 'out')]) == 0
    (file,) = (tmp_path / 'out').glob('two_heads-*.pth')
    assert list(torch.load(file, weights_only=True)['state_dict']) == list(content['state_dict'])


@pytest.mark.parametrize(
    'change, words, message',
    [
        (lambda c: c['meta'].pop('cfg'), [], 'holds no config'),
        (
            lambda c: c['state_dict'].pop('decode_head.conv_seg.bias'),
            [],
            "lacks 1 of the model's tensors",
        ),
        (
            lambda c: c['meta'].update(dataset_meta=dict(classes=('car', 'sky'))),
            [],
            'tells 4 classes apart.*name 2',
        ),
        (lambda c: None, ['--config', 'mmlk::fpn_recnext_m0_ade20k_mini.py'], 'does not fit'),
        (lambda c: None, ['--out', 'broken.pth'], 'is no folder'),
    ],
)
def test_bad_input_leaves_nothing(change, words, message, trained, tmp_path, monkeypatch):
    content = torch.load(trained / 'iter_4.pth', weights_only=False)
    change(content)
    monkeypatch.chdir(tmp_path)
    torch.save(content, 'broken.pth')
    with pytest.raises(SystemExit, match=f'^mmlk publish: error: (.|\n)*{message}'):
        program.main(['publish', 'broken.pth', *words])
    assert [path.name for path in tmp_path.iterdir()] == ['broken.pth']


def test_interrupted_write_leaves_nothing(trained, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr('mmlk.publish.sha256_of', stop)
    with pytest.raises(KeyboardInterrupt):
        program.main(['publish', str(trained / 'iter_4.pth'), '--out', str(tmp_path / 'out')])
    assert list((tmp_path / 'out').iterdir()) == []


def test_metric_that_is_no_number_is_a_wrong_command_line(capsys):
    with pytest.raises(SystemExit) as stop:
        program.main(['publish', 'x.pth', '--metric', 'mIoU=high'])
    assert stop.value.code == 2
    assert "'mIoU=high' is not NAME=NUMBER" in capsys.readouterr().err


def test_publishing_twice_gives_one_file(trained, tmp_path, monkeypatch):
    """Neither the process nor the time becomes part of the file."""
    for process, name in enumerate(('a', 'a', 'b'), start=1):
        monkeypatch.setattr('mmlk.cli.files.os.getpid', lambda process=process: process)
        assert (
            program.main(['publish', str(trained / 'iter_4.pth'), '--out', str(tmp_path / name)])
            == 0
        )
    (first,), (second,) = ((tmp_path / name).iterdir() for name in 'ab')
    assert first.name == second.name


@pytest.mark.parametrize('name', ["it's", 'a, "b"', 'straße 道路', '{x}', 'back\\slash'])
def test_names_of_classes_may_be_any_text(name, trained, photos, tmp_path, capsys):
    content = torch.load(trained / 'iter_4.pth', weights_only=False)
    classes = (name, *CLASSES[1:])
    content['meta']['dataset_meta']['classes'] = classes
    changes = f'type="BaseSegDataset", metainfo=dict(classes={classes!r})'
    content['meta']['cfg'] += f'test_dataloader["dataset"].update({changes})\n'
    torch.save(content, tmp_path / 'odd.pth')
    assert program.main(['publish', str(tmp_path / 'odd.pth'), '--out', str(tmp_path / 'out')]) == 0
    (file,) = (tmp_path / 'out').iterdir()
    model = mmlk.load_model(file, device='cpu')
    assert model.classes == classes
    assert model.predict(photos / 'a.png')[0].picture().height > 48
