"""Sweeps: the grid, its costs, runs that end, fail and are interrupted, the table, the plot, bad input.

Runs are started as users' are, by a stand-in for the training that takes no time: it goes on from its
checkpoints, three epochs in all, and logs as MMEngine does.
"""

import argparse
import fcntl
import json
import shlex
import subprocess
import sys

import pytest
from mmengine.config import Config
from PIL import Image

from mmlk.analysis import sweep_report, sweep_runs, sweeps
from mmlk.analysis.sweep_runs import Status
from mmlk.commands import train
from tests.scripts import load_tool
from tests.tools.workbench import write_config

TRAINING = """
import json, os, sys
from pathlib import Path

config, folder, epochs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
done = len([*folder.glob('epoch_*.pth')])
print('config', config, 'from epoch', done)
files = [Path(f'/proc/self/fd/{each}').resolve().name for each in os.listdir('/proc/self/fd')]
assert '.sweep_lock' in files, files
if folder.name.startswith('broken'):
    sys.exit('train.py: error: picture 7 cannot be read')
log = folder / f'2026010{done + 1}_000000' / 'vis_data' / 'scalars.json'
log.parent.mkdir(parents=True)
seed = int((folder.name + 'seed0').split('seed')[1])
with open(log, 'w') as file:
    for epoch in range(done + 1, min(done + epochs, 3) + 1):
        step = 10 * epoch
        for line in (
            dict(loss=1 / epoch, time=0.5 * epoch, iter=step, step=step),
            dict(mIoU=10.0 * epoch + seed, aAcc=50.0, step=step, time=9.0),
        ):
            file.write(json.dumps(line) + '\\n')
        (folder / f'epoch_{epoch}.pth').touch()
"""
AXES = [
    dict(key='model.backbone.layer_scale_init', values=[('small', 0.1), ('large', 1)]),
    dict(
        values=[
            ('slow', {}),
            ('fast', {'optim_wrapper.optimizer.lr': 0.1, 'train_cfg.max_iters': 8}),
        ]
    ),
]
ONE = [dict(key='train_cfg.max_iters', values=[('one', 1), ('two', 2)])]


tool = load_tool('sweep.py')


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a sweep over the small segmentation config of these tests."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, tmp_path / 'data')

    def write(name='grid.py', **content):
        content = dict(dict(base='tiny.py', axes=ONE), **content)
        lines = (f'{key} = {value!r}\n' for key, value in content.items() if value is not None)
        (tmp_path / name).write_text(''.join(lines))
        return name

    return write


@pytest.fixture
def epochs(write, tmp_path, monkeypatch):
    """Has the stand-in train; the list holds the number of epochs that each of the next runs makes."""
    script = tmp_path / 'training.py'
    script.write_text(TRAINING)
    (tmp_path / 'tiny.py').write_text(
        'train_cfg = dict(max_iters=4)\noptim_wrapper = dict(optimizer=dict(lr=0.001))\n'
    )
    left = []

    def training(config, folder, gpus):
        return [sys.executable, '-S', script, config, folder, str(left.pop(0) if left else 3)]

    monkeypatch.setattr(tool, 'training', training)
    monkeypatch.setattr(sweeps, 'cost', lambda *setting: sweeps.Cost(2_000_000, 4_000_000_000, 1))
    return left


def results(work_dir='work_dirs/grid'):
    with open(f'{work_dir}/results.json') as file:
        return json.load(file)


def test_the_grid_is_the_product_of_the_axes(write):
    sweep = sweeps.load_sweep(write(axes=AXES, cfg_options={'randomness.seed': 3}))
    fast = AXES[1]['values'][1][1]
    fixed, key = {'randomness.seed': 3}, 'model.backbone.layer_scale_init'
    assert sweep.settings == (
        ('small-slow', {**fixed, key: 0.1}),
        ('small-fast', {**fixed, key: 0.1, **fast}),
        ('large-slow', {**fixed, key: 1}),
        ('large-fast', {**fixed, key: 1, **fast}),
    )
    cfg = sweeps.setting_config(sweep, sweep.settings[3])
    assert cfg.model.backbone.layer_scale_init == 1 and cfg.train_cfg.max_iters == 8
    assert cfg.optim_wrapper.optimizer.lr == 0.1 and cfg.randomness.seed == 3
    assert sweeps.setting_config(sweep, sweep.settings[0], seed=7).randomness.seed == 7


def test_yaml_says_the_same(write, tmp_path):
    (tmp_path / 'grid.yaml').write_text(
        'base: tiny.py\naxes:\n- key: train_cfg.max_iters\n  values: [[one, 1], [two, 2]]\n'
        'seeds: [0, 1]\n'
    )
    sweep = sweeps.load_sweep('grid.yaml')
    assert sweep.settings == sweeps.load_sweep(write()).settings
    assert [run.name for run in sweep.runs()] == [
        'one-seed0',
        'one-seed1',
        'two-seed0',
        'two-seed1',
    ]


@pytest.mark.parametrize(
    ('name', 'setting', 'parameters'),
    [
        ('recnext_kernels', 'recursive3', 5_303_336),  # the authors' log
        # the published network without 3 x 3 weights and a bias in an eighth of the channels
        ('inceptionnext_branches', 'no_square', 28_055_680 - 10 * 828),
    ],
)
def test_ready_sweeps_count_what_was_published(name, setting, parameters):
    sweep = sweeps.load_sweep(name)
    found = sweeps.cost(sweep, next(each for each in sweep.settings if each.name == setting))
    assert (found.parameters, found.density) == (parameters, 1)
    published = sweep.published.get(setting, {})
    row = sweep_report.Row(setting, found, published, ())
    assert all(
        row.size(what) == pytest.approx(published[what], rel=0.05)
        for what in ('parameters', 'macs')
        if what in published
    )


def test_ready_sweeps_are_whole():
    assert len(sweeps.ready_sweeps()) == 5
    for name in sweeps.ready_sweeps():
        sweep = sweeps.load_sweep(name)
        assert sweep.source and sweep.published
        cfg = sweeps.setting_config(sweep, sweep.settings[-1])
        assert sweeps.density(cfg) == (0.6 if name.startswith('slak') else 1)


def test_the_training_is_that_of_the_train_command(tmp_path):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    python, script, *words = tool.training('a.py', 'runs/a', None)
    assert python == sys.executable and script.endswith('tools/train.py')
    args = parser.parse_args(words)
    assert (args.config, args.work_dir, args.resume) == ('a.py', 'runs/a', 'auto')
    start = tool.training('a.py', 'runs/a', 4)
    assert start[3].endswith('tools/dist_train.sh') and start[4:] == ['a.py', '4', *words[1:]]


def test_a_sweep_runs_to_its_end_and_is_not_repeated(write, epochs, capsys):
    sweep = write(axes=AXES[1:])
    assert tool.main([sweep, '--over', 'parameters']) == 0
    found = results()
    assert [each['name'] for each in found['settings']] == ['slow', 'fast']
    for each in found['settings']:
        assert (each['parameters'], each['macs']) == (2_000_000, 4_000_000_000)
        assert (each['mean'], each['spread'], each['seconds']) == (30, None, 1.0)
    assert found['metric'] == 'mIoU'
    assert min(Image.open('work_dirs/grid/results.png').size) > 300
    with open('work_dirs/grid/results.md') as file:
        table = file.read()
    assert '| fast | 2 | 4 | 30.00 | 1 | 1 of 1 finished |' in table
    assert table in capsys.readouterr().out
    written = Config.fromfile('work_dirs/grid/configs/fast.py')
    assert (written.optim_wrapper.optimizer.lr, written.train_cfg.max_iters) == (0.1, 8)
    epochs[:] = ['not to be started']
    assert tool.main([sweep]) == 0 and epochs


def test_an_interrupted_run_continues(write, epochs, monkeypatch, tmp_path):
    sweep, start = write(), subprocess.run

    def killed(*args, **options):
        start(*args, **options)
        raise KeyboardInterrupt

    assert tool.main([sweep, '--index', '0']) == 0
    epochs[:] = [1]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(subprocess, 'run', killed)
        tool.main([sweep])
    folder = tmp_path / 'work_dirs/grid/two'
    assert (folder / 'epoch_1.pth').is_file() and sweep_runs.read_status(folder) is None
    assert tool.main([sweep, '--collect']) == 3
    assert [each['mean'] for each in results()['settings']] == [30, None]
    assert not (folder / 'epoch_2.pth').exists()
    assert tool.main([sweep]) == 0
    said = (folder / sweep_runs.OUTPUT).read_text()
    assert 'from epoch 0' in said and 'from epoch 1' in said
    assert [each['mean'] for each in results()['settings']] == [30, 30]
    assert not list(tmp_path.rglob('*partial*'))


def test_a_failed_run_is_recorded_and_the_others_go_on(write, epochs, tmp_path, capsys):
    values = [('broken', 1), ('whole', 2)]
    sweep = write(axes=[dict(key='train_cfg.max_iters', values=values)])
    assert tool.main([sweep]) == 3
    reason = 'exit status 1: train.py: error: picture 7 cannot be read'
    assert f'0 of 1 finished; failed: {reason} |' in capsys.readouterr().out
    broken, whole = results()['settings']
    assert broken['runs'][0]['reason'] == reason and broken['mean'] is None
    assert whole['mean'] == 30
    script = tmp_path / 'training.py'  # once its cause is gone, the run is made
    script.write_text(TRAINING.replace("'broken'", "'another'"))
    assert tool.main([sweep]) == 0
    assert [each['mean'] for each in results()['settings']] == [30, 30]


def test_a_run_without_the_metric_has_failed(write, epochs):
    assert tool.main([write(metric='bbox_mAP'), '--index', '1']) == 3
    found = sweep_runs.read_status(sweep_runs.Path('work_dirs/grid/two'))
    assert 'the log has no metric' in found.reason and 'mIoU, aAcc' in found.reason


def test_two_processes_do_not_train_one_run(write, epochs, capsys):
    sweep = write()
    assert tool.main([sweep, '--index', '0']) == 0
    epochs[:] = ['not to be started']
    with open('work_dirs/grid/one/.sweep_lock') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert tool.main([sweep, '--index', '0']) == 3
    assert 'one: left out, another process trains it' in capsys.readouterr().out and epochs


def test_a_run_of_another_config_is_refused(write, epochs):
    assert tool.main([write(), '--index', '1']) == 0
    changed = [dict(key='train_cfg.max_iters', values=[('one', 1), ('two', 3)])]
    with pytest.raises(SystemExit, match='two was trained with another config, .* delete'):
        tool.main([write(axes=changed)])


def test_listed_commands_are_those_of_the_tool(write, epochs, capsys):
    sweep = write(seeds=[0, 5])
    assert tool.main([sweep, '--list', '--work-dir', 'some where']) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 4
    for command in commands:
        python, script, *words = shlex.split(command)
        assert python == sys.executable and script.endswith('tools/sweep.py')
        assert tool.main(words) == 0
    assert tool.main([sweep, '--collect', '--work-dir', 'some where']) == 0
    for each in results('some where')['settings']:
        # mIoU is 30 and the seed
        assert (each['mean'], each['spread']) == (32.5, pytest.approx(5 / 2**0.5))


def row(name, macs, values, published=()):
    statuses = [Status('finished', '', 'mIoU', value, 0.25) for value in values]
    return sweep_report.Row(name, sweeps.Cost(2_000_000, macs, 0.5), dict(published), statuses)


ROWS = [
    row('a', 4e9, [40.0, 42.0], dict(parameters=1_250_000, metric=41.5)),
    row('b', 6e9, [44.0]),
    sweep_report.Row('c', sweeps.Cost(3_000_000, 8e9, 1), {}, [None]),
]


def test_the_table_shows_sizes_deviations_mean_and_spread(write):
    sweep = sweeps.load_sweep(write())._replace(published=dict(a={}), source='somebody')
    lines = sweep_report.markdown(sweep, ROWS).splitlines()
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines[:5]]
    table = [dict(zip(cells[0], line)) for line in cells[2:]]
    assert table[0] == {
        'setting': 'a',
        'density': '0.5',
        'parameters (M)': '1',
        'published parameters (M)': '1.25',
        'parameters (M), change': '-20.00%',
        'multiply-adds (G)': '2',
        'mIoU': '41.00 ± 1.41',
        'published mIoU': '41.5',
        'seconds per iteration': '0.25',
        'runs': '2 of 2 finished',
    }
    assert table[1]['mIoU'] == '44.00' and table[1]['published parameters (M)'] == ''
    assert (table[2]['mIoU'], table[2]['runs']) == ('', '0 of 1 finished')
    assert lines[-1] == 'Published: somebody.'
    dry = sweep_report.markdown(sweep, ROWS, trained=False)
    assert 'seconds' not in dry and 'finished' not in dry


@pytest.mark.parametrize(('over', 'at'), [('macs', [2, 2, 3]), ('parameters', [1, 1, 1])])
def test_the_plot_has_a_point_per_setting_with_a_metric(over, at, write):
    figure = sweep_report.draw(sweeps.load_sweep(write()), ROWS, over)
    (panel,) = figure.axes
    points = [line.get_xydata()[0].tolist() for line in panel.lines if line.get_marker() == 'o']
    assert points == [list(each) for each in zip(at, [41.0, 41.5, 44.0])]
    (bar,) = panel.collections
    assert bar.get_segments()[0][:, 1] == pytest.approx([41 - 2**0.5, 41 + 2**0.5])
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.texts} == {'a', 'a, published', 'b'}


def test_a_dry_run_writes_nothing(write, capsys, tmp_path):
    before = set(tmp_path.rglob('*'))
    sweep = write(published=dict(one=dict(parameters=1000)), source='somebody')
    assert tool.main([sweep, '--dry-run']) == 0
    said = capsys.readouterr().out
    assert said.startswith('| setting |') and '| one |' in said and '| 0.001 |' in said
    assert set(tmp_path.rglob('*')) - before == {tmp_path / sweep}


def axis(*values, key='train_cfg.max_iters'):
    return [dict(key=key, values=list(values))]


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (dict(axis=ONE), "a sweep has no 'axis'; it has axes"),
        (dict(base=None), 'base None is no config'),
        (dict(base='mmlk::upernet_slak_x_ade20k'), 'setting one: .*upernet_slak_s_ade20k'),
        (dict(base='tny.py'), "setting one: .*there is no config file 'tny.py'"),
        (dict(axes=[]), 'axes .* is no list with an axis'),
        (dict(axes=axis()), 'axis 1 .train_cfg.max_iters. is empty'),
        (dict(axes=axis(('a', 1), 2)), 'axis 1: 2 is no pair'),
        (dict(axes=axis(('a/b', 1))), "the name 'a/b' is no name of a folder"),
        (dict(axes=axis(('a', 1), key=None)), 'a is 1; without a key'),
        (dict(axes=axis(('a', 1), ('A', 2))), 'two settings have one name: a, A'),
        (dict(axes=[dict(name='x', values=[])]), "axis 1 has no 'name'"),
        (dict(axes=[*ONE, *axis(('a', 3))]), 'train_cfg.max_iters is set twice: by a'),
        (dict(cfg_options={'train_cfg.max_iters': 3}), 'train_cfg.max_iters is set twice: by one'),
        (
            dict(axes=axis(('a', 1), key='train_cfg.max_iter')),
            'setting a: .*did you mean max_iters',
        ),
        (
            dict(axes=axis(('a', dict(x=1)), key='train_cfg.max_iters')),
            'setting a: .*cannot inherit from',
        ),
        (dict(axes=axis(('a', 'T'), key='model.backbone.arch')), "setting a: .*'T' is not one of"),
        (
            dict(axes=axis(('a', (0,)), key='model.backbone.out_indices')),
            'setting a: .*the outputs of mmlk.InceptionNeXt have 8 channels',
        ),
        (dict(seeds=[-1]), r'seeds \[-1\] are not whole numbers'),
        (dict(published=dict(on={})), "the grid has no 'on'; it has one"),
        (dict(published=dict(one=dict(flops=1))), "published of one has no 'flops'"),
    ],
)
def test_bad_input_is_one_clear_error(content, words, write):
    with pytest.raises(SystemExit, match=rf'^sweep.py: error: .*{words}'):
        tool.main([write(**content), '--dry-run'])


def test_files_and_indices_that_are_not_there_are_refused(write, tmp_path):
    with pytest.raises(SystemExit, match="no sweep 'slak_kernel'; ready ones: slak_kernels"):
        tool.main(['slak_kernel', '--list'])
    with pytest.raises(SystemExit, match='--index 2 is not within 0 to 1'):
        tool.main([write(), '--index', '2'])
    (tmp_path / 'bad.py').write_text('base =')
    with pytest.raises(SystemExit, match='bad.py cannot be read: SyntaxError'):
        tool.main(['bad.py', '--list'])
    folder = tmp_path / 'work_dirs/grid/one'
    folder.mkdir(parents=True)
    (folder / sweep_runs.STATUS).write_text('{"state":')
    with pytest.raises(SystemExit, match='sweep_status.json is no status of a run'):
        tool.main([write(), '--index', '0'])
