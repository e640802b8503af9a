"""The command line: what it writes, that it repeats itself, and what it refuses to touch."""

import json

import pytest

from mmlk.data import folder
from tests.scripts import load_tool

tool = load_tool('generate_data.py')

SMALL = ['--train', '2', '--val', '1', '--size', '100x120']


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


@pytest.mark.parametrize(
    'layout, expected',
    [
        (
            'ade20k',
            {
                'images/training/ADE_train_00000001.jpg',
                'images/training/ADE_train_00000002.jpg',
                'images/validation/ADE_val_00000001.jpg',
                'annotations/training/ADE_train_00000001.png',
                'annotations/training/ADE_train_00000002.png',
                'annotations/validation/ADE_val_00000001.png',
            },
        ),
        (
            'coco',
            {
                'train2017/000000000001.jpg',
                'train2017/000000000002.jpg',
                'val2017/000001000001.jpg',
                'annotations/instances_train2017.json',
                'annotations/instances_val2017.json',
            },
        ),
    ],
)
def test_layout_of_the_files(tmp_path, layout, expected):
    assert tool.main([str(tmp_path / 'out'), '--format', layout, *SMALL]) == 0
    assert set(contents(tmp_path / 'out')) == expected | {folder.MARKER}


def test_two_runs_write_the_same_bytes_in_any_number_of_processes(tmp_path):
    tool.main([str(tmp_path / 'a'), *SMALL])
    tool.main([str(tmp_path / 'b'), *SMALL, '--jobs', '2'])
    first = contents(tmp_path / 'a')
    assert len(first) == 12 and first == contents(tmp_path / 'b')


def test_the_formats_share_their_pictures(generated):
    names = 'images/training/ADE_train_00000002.jpg', 'train2017/000000000002.jpg'
    first, second = ((generated / name).read_bytes() for name in names)
    assert first == second


def test_a_second_run_finds_the_set_up_to_date(tmp_path, capsys):
    out = tmp_path / 'out'
    tool.main([str(out), *SMALL])
    times = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    assert tool.main([str(out), *SMALL]) == 0
    assert 'up to date' in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob('*')}


def test_another_set_is_replaced_only_on_request(tmp_path, capsys):
    out = tmp_path / 'out'
    tool.main([str(out), *SMALL])
    before = contents(out)
    assert tool.main([str(out), *SMALL, '--seed', '1']) == 1
    assert '--overwrite' in capsys.readouterr().err
    assert contents(out) == before
    assert tool.main([str(out), *SMALL, '--seed', '1', '--overwrite']) == 0
    assert contents(out) != before
    assert [path.name for path in tmp_path.iterdir()] == ['out']


@pytest.mark.parametrize('flags', [[], ['--overwrite']], ids=['plain', 'overwrite'])
@pytest.mark.parametrize('marked', [True, False], ids=['among-generated', 'alone'])
def test_files_of_other_origin_are_never_touched(tmp_path, capsys, flags, marked):
    out = tmp_path / 'out'
    [tool.main([str(out), *SMALL]) for _ in range(marked)]
    out.mkdir(exist_ok=True)
    (out / 'thesis.txt').write_text('years of work')
    before = contents(out)
    assert tool.main([str(out), *SMALL, '--seed', '9', *flags]) == 1
    assert 'thesis.txt' in capsys.readouterr().err
    assert contents(out) == before


def test_a_marker_of_others_is_no_permission(tmp_path):
    (tmp_path / folder.MARKER).write_text(json.dumps(dict(generator='other', files={})))
    assert folder.read_marker(tmp_path) is None
    (tmp_path / 'kept').write_text('')
    assert tool.main([str(tmp_path), *SMALL, '--overwrite']) == 1


def test_a_damaged_set_is_not_up_to_date(tmp_path):
    out = tmp_path / 'out'
    tool.main([str(out), *SMALL])
    (out / 'images/validation/ADE_val_00000001.jpg').unlink()
    assert folder.changed_files(out) == ['images/validation/ADE_val_00000001.jpg']
    assert tool.main([str(out), *SMALL]) == 1
    assert tool.main([str(out), *SMALL, '--overwrite']) == 0
    assert folder.changed_files(out) == []


def test_a_failure_leaves_nothing_behind(tmp_path):
    def failing():
        yield 'images/a.jpg', b'a'
        raise OSError('disk full')

    with pytest.raises(OSError, match='disk full'):
        folder.write_folder(tmp_path / 'out', failing(), 1, {})
    assert list(tmp_path.iterdir()) == []


def test_remains_of_a_killed_run_are_removed(tmp_path):
    dead = tmp_path / '.out.partial-99999999'
    dead.mkdir()
    tool.main([str(tmp_path / 'out'), *SMALL])
    assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_a_file_in_the_way_is_refused(tmp_path, capsys):
    (tmp_path / 'out').write_text('')
    assert tool.main([str(tmp_path / 'out'), *SMALL]) == 1
    assert 'is a file' in capsys.readouterr().err


@pytest.mark.parametrize(
    'wrong',
    [
        ['--size', '200'],
        ['--size', '10x300'],
        ['--train', '0'],
        ['--seed', '-1'],
        ['--jobs', 'x'],
        ['--format', 'voc'],
    ],
    ids=' '.join,
)
def test_bad_arguments_are_refused(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit, match='2'):
        tool.main([str(tmp_path / 'out'), *wrong])
    assert wrong[0] in capsys.readouterr().err
