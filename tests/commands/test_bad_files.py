"""What users get wrong, and full disks: one message, and nothing half-written."""

import resource
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import mmlk
from mmlk.cli import program
from mmlk.cli.files import complete
from mmlk.inference.video import video_file


@pytest.fixture
def full_disk(monkeypatch):
    """Files of this process can have so many bytes, as if the disk were full behind them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(count):
        resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()
    )


def refused(words, message):
    with pytest.raises(SystemExit, match=f'^mmlk {words[0]}: error: (.|\n)*{message}'):
        program.main([str(word) for word in words])


def zipped(path):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/readme.txt', 'not a model')


def recnext(path):
    """A file of a whole network, as its authors write it."""
    torch.save(mmlk.create_model('recnext_m0').state_dict(), path)
    return path


def program_of_others(path):
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(2),)), path)


@pytest.mark.parametrize('suffix', ['.onnx', '.pt2'])
@pytest.mark.parametrize(
    'write, message',
    [
        (lambda path: path.write_bytes(b''), 'cannot be read: it is damaged'),
        (lambda path: path.write_bytes(b'no model'), 'cannot be read: it is damaged'),
        (zipped, 'cannot be read: it is damaged'),
        (lambda path: path.mkdir(), 'there is no file'),
    ],
    ids=['empty', 'text', 'zip', 'folder'],
)
def test_files_that_are_no_exported_model(write, message, suffix, photos, tmp_path, capfd):
    file = tmp_path / f'model{suffix}'
    write(file)
    refused(['predict', file, photos, '--out', tmp_path / 'out'], message)
    refused(['benchmark', file], message)
    assert not (tmp_path / 'out').exists() and capfd.readouterr() == ('', '')


def test_program_of_others_is_refused(photos, tmp_path):
    program_of_others(tmp_path / 'model.pt2')
    refused(['predict', tmp_path / 'model.pt2', photos], 'was not written by mmlk export')


@pytest.mark.parametrize(
    'words, message',
    [
        (['predict', 'FOLDER', 'a.png'], "FOLDER' is a folder; name a file in it"),
        (['predict', 'tiny.py', 'a.png', '--checkpoint', 'FOLDER'], 'FOLDER is a folder'),
        (['predict', 'CHECKPOINT', 'FOLDER'], 'FOLDER holds no picture'),
        (
            ['export', 'x.onnx', '--out', 'y.pt2'],
            "x.onnx' is an exported model, which stands alone",
        ),
        (['export', 'CHECKPOINT', '--out', 'z.onnx'], 'z.onnx is a folder; name a file'),
        (['publish', 'x.onnx'], 'is an exported model'),
        (['publish', 'FOLDER'], 'FOLDER is a folder'),
    ],
)
def test_folders_and_files_of_other_kinds(words, message, trained, photos, monkeypatch):
    monkeypatch.chdir(photos)
    (photos / 'FOLDER').mkdir()
    (photos / 'z.onnx').mkdir()
    (photos / 'x.onnx').write_bytes(b'anything')
    (photos / 'tiny.py').write_text((trained / 'tiny.py').read_text())
    before = files(photos)
    refused([word.replace('CHECKPOINT', str(trained / 'iter_4.pth')) for word in words], message)
    assert files(photos) == before


def test_pictures_that_the_model_does_not_take_are_listed(trained, photos, tmp_path, capsys):
    for name, size in (('tiny', (1, 1)), ('wide', (400, 5)), ('tall', (5, 400))):
        Image.new('RGB', size).save(photos / f'{name}.png')
    (photos / 'broken.jpg').unlink()
    out = tmp_path / 'out'
    words = ['predict', trained / 'iter_4.pth', photos, '--out', out, '--batch-size', 3]
    assert program.main([*map(str, words), '--no-pictures', '--device', 'cpu']) == 3
    printed = capsys.readouterr().err
    assert '3 file(s) left out' in printed and 'wide.png: 400 x 5 pixels: ' in printed
    assert files(out) == [
        'classes.json',
        *(f'labels/{name}.png' for name in ('a', 'b', 'c', 'more/d')),
    ]
    model = mmlk.load_model(trained / 'iter_4.pth', device='cpu')
    with pytest.raises(ValueError, match='predict: .*tiny.png: 1 x 1 pixels: .*32 x 32'):
        model.predict(photos / 'tiny.png')
    with pytest.raises(ValueError, match='predict: 000001: 8 x 8 pixels'):
        model.predict([np.zeros((64, 64, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)])


def test_predictions_do_not_become_pictures_of_the_source(trained, photos, monkeypatch):
    (photos / 'broken.jpg').unlink()
    words = ['predict', trained / 'iter_4.pth', photos, '--device', 'cpu', '--out']
    assert program.main([*map(str, words), str(photos / 'found')]) == 0
    before = files(photos)
    refused(
        [*words, photos / 'found'], 'found/labels/a.png is a picture of the source and lies where'
    )
    (photos / 'found').rename(photos / 'pictures')
    refused([*words, photos], 'pictures/labels/a.png is a picture of the source')
    assert len(before) == len(files(photos)) > 8
    assert program.main([*map(str, words[:2]), str(photos / 'a.png'), *words[3:], str(photos)]) == 0


@pytest.mark.parametrize('room', [200, 3000])
def test_full_disk_ends_a_prediction_in_one_message(room, trained, photos, tmp_path, full_disk):
    """What an earlier run has left stays whole."""
    out = tmp_path / 'out'
    words = ['predict', trained / 'iter_4.pth', photos, '--out', out, '--device', 'cpu']
    assert program.main([*map(str, words)]) == 3
    before = files(out)
    full_disk(room)
    refused(words, 'File too large')
    assert set(before) <= set(files(out))
    for name in files(out):
        assert not name.startswith('.')
        if not name.endswith('.json'):
            Image.open(out / name).load()


def test_full_disk_ends_a_video_in_one_message(tmp_path, full_disk):
    noise = np.random.RandomState(0).randint(0, 256, (20, 48, 64, 3)).astype(np.uint8)
    full_disk(9000)
    with pytest.raises(
        OSError, match='of 20 pictures of .*a.mp4 could be written; is the disk full'
    ):
        with video_file(tmp_path / 'a.mp4', 25) as video:
            for frame in noise:
                video.add(Image.fromarray(frame))
    assert files(tmp_path) == []


@pytest.mark.parametrize('name', ['publish', 'model.pt2', 'converted.pth', 'converted.safetensors'])
def test_full_disk_leaves_no_model(name, trained, tmp_path, full_disk):
    """torch's own writers end the whole process, or speak of positions."""
    words = ['export', trained / 'iter_4.pth', '--shape', 64, 64, '--out', tmp_path / name]
    if name == 'publish':
        words = ['publish', trained / 'iter_4.pth', '--out', tmp_path]
    if 'converted' in name:
        words = ['convert', recnext(tmp_path.parent / 'network.pth'), tmp_path / name]
    full_disk(9000)
    refused(words, 'File too large')
    assert files(tmp_path) == []


def test_a_name_as_long_as_names_can_be(tmp_path):
    target = tmp_path / ('n' * 251 + '.txt')
    with complete(target) as partial:
        partial.write_text('x')
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
