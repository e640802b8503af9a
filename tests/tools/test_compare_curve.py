"""Published-curve comparison on logs of both generations of the toolboxes and of plain trainers."""

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mmlk.analysis import curves, logs
from tests.scripts import load_tool

ROOT = Path(__file__).parents[2]
CURVES = curves.published_runs()
SEG, DET, CLS = 'fpn_recnext_m3_ade20k', 'mask_rcnn_recnext_m3_coco', 'recnext_m3_in1k'


tool = load_tool('compare_curve.py')


def losses_of(name, until, start=0):
    """Loss every 50 iterations, interpolated between the published anchors."""
    anchors = [(0, CURVES[name]['losses']['points'][0][1])]
    anchors += [tuple(point[:2]) for point in CURVES[name]['losses']['points']]
    for step in range(start + 50, until + 1, 50):
        (a, left), (b, right) = next(
            pair for pair in zip(anchors, anchors[1:]) if pair[0][0] < step <= pair[1][0]
        )
        yield step, left + (right - left) * (step - a) / (b - a)


def write(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
    return path


def mmengine_seg(change=lambda step, value: value, until=8000, start=0):
    entries = [
        dict(lr=1e-4, loss=change(step, value), iter=step, step=step, **{'decode.loss_ce': value})
        for step, value in losses_of(SEG, until, start)
    ]
    ends = [dict(aAcc=77.39, mIoU=32.8, mAcc=43.06, step=8000)] if start < 8000 <= until else []
    return [*entries, *ends]


def test_log_on_the_curve_follows_it(tmp_path, capsys):
    write(tmp_path / SEG / '2026' / 'vis_data' / 'scalars.json', mmengine_seg())
    assert tool.main([str(tmp_path / SEG), '--loss-tolerance', '0.25']) == 0
    said = capsys.readouterr().out
    assert 'loss follows the published curve' in said
    assert 'mIoU follows the published curve' in said
    assert 'values compared up to step 8000' in said


def test_departure_is_located(tmp_path, capsys):
    entries = mmengine_seg(lambda step, value: value * (1.5 if step > 600 else 1.0))
    log = write(tmp_path / 'scalars.json', entries)
    assert tool.main([str(log), '--reference', SEG, '--loss-tolerance', '0.25']) == 1
    said = capsys.readouterr().out
    assert 'loss leaves the published curve at step 750' in said
    assert 'mIoU follows the published curve' in said


def run_folder(work_dir, start):
    return work_dir / start / 'vis_data' / 'scalars.json'


def test_resumed_runs_are_merged_and_the_later_one_counts(tmp_path, capsys):
    """Three runs: 0 to 6000, again from 4000 with another loss to 5000, and from 5000 to 8000."""
    work = tmp_path / SEG
    # written first to last, while the names say the true order
    write(run_folder(work, '20260103_000000'), mmengine_seg(start=5000))
    write(run_folder(work, '20260102_000000'), mmengine_seg(lambda s, v: 2 * v, 5000, start=4000))
    write(run_folder(work, '20260101_000000'), mmengine_seg(lambda s, v: 3 * v, 6000))
    log = logs.read_log(logs.find_logs(work))
    published = dict(losses_of(SEG, 8000))
    factors = {step: value / published[step] for step, value in log.losses['loss']}
    assert list(factors) == list(range(50, 8001, 50))
    assert [factors[step] for step in (4000, 4050, 5000, 5050, 8000)] == pytest.approx(
        [3, 2, 2, 1, 1]
    )
    assert [note.rsplit(': ')[1] for note in log.files] == [
        'steps 50 to 6000',
        'steps 4050 to 5000',
        'steps 5050 to 8000',
    ]
    tool.main([str(work), '--keys', 'mIoU'])
    assert 'steps 4050 to 5000' in capsys.readouterr().out


def test_what_was_given_up_beyond_the_end_of_a_later_run_does_not_count(tmp_path):
    first = [*mmengine_seg(until=8000), dict(mIoU=99.0, aAcc=99.0, mAcc=99.0, step=8000)]
    write(run_folder(tmp_path, '20260101_000000'), first)
    write(run_folder(tmp_path, '20260102_000000'), mmengine_seg(until=6000, start=4000))
    log = logs.read_log(logs.find_logs(tmp_path))
    assert log.losses['loss'][-1][0] == 6000 and not log.metrics


def test_concatenated_files_are_merged_likewise(tmp_path):
    entries = mmengine_seg(lambda s, v: 3 * v, 6000) + mmengine_seg(start=4000)
    log = logs.read_log([write(tmp_path / 'all.json', entries)])
    published = dict(losses_of(SEG, 8000))
    assert dict(log.losses['loss'])[5000] == pytest.approx(published[5000])
    assert dict(log.losses['loss'])[4000] == pytest.approx(3 * published[4000])


def test_mmcv_segmentation_log_reads_the_same(tmp_path):
    new = write(tmp_path / 'new.json', mmengine_seg())
    old = [dict(env_info='...')]
    for entry in mmengine_seg()[:-1]:
        old.append(
            dict(
                mode='train',
                epoch=1,
                iter=entry['iter'],
                loss=entry['loss'],
                **{'decode.loss_ce': entry['loss']},
            )
        )
    old.append(dict(mode='val', epoch=13, iter=250, aAcc=0.7739, mIoU=0.328, mAcc=0.4306))
    want = logs.read_log([new])
    got = logs.read_log([write(tmp_path / 'old.log.json', old)])
    assert got.losses == want.losses
    assert got.metrics.keys() == want.metrics.keys()
    assert got.metrics['mIoU'] == [(8000, pytest.approx(32.8))]


def detection_log(path, old):
    train = {True: dict(mode='train'), False: dict(step=7330 + 50)}[old]
    scores = {
        True: dict(mode='val', bbox_mAP=0.3028, segm_mAP=0.2964),
        False: {'step': 2, 'coco/bbox_mAP': 0.3028, 'coco/segm_mAP': 0.2964},
    }[old]
    second = dict(epoch=2, iter=5000) if old else {}
    return write(
        path,
        [
            dict(epoch=2, iter=50, loss=0.9, loss_cls=0.3, acc=90.0, **train),
            dict(second, **scores),
        ],
    )


@pytest.mark.parametrize('old', [True, False], ids=['mmcv', 'mmengine'])
def test_detection_log_counts_iterations_over_epochs(tmp_path, old):
    log = logs.read_log([detection_log(tmp_path / 'x.json', old)], 7330)
    assert log.losses == {'loss': [(7380, 0.9)], 'loss_cls': [(7380, 0.3)]}
    assert log.metrics['bbox_mAP'] == [(14660, pytest.approx(30.28))]
    rows = list(curves.compare(log, CURVES[DET], 0.15, 1.5))
    (row,) = [row for row in rows if row.name == 'bbox_mAP' and row.found is not None]
    assert (row.step, row.published, row.off) == (14660, 30.28, False)


def test_epochs_of_another_length_are_stretched_to_the_published_ones(tmp_path):
    """Four GPUs with half the batch: 14660 iterations per epoch, which the text log says."""
    file = detection_log(run_folder(tmp_path, '20260101_000000'), False)
    text = file.parents[1] / '20260101_000000.log'
    text.write_text('... INFO - Epoch(train)  [2][   50/14660]  lr: 2.0e-04  loss: 0.9\n')
    log = logs.read_log([file], 7330)
    assert log.losses['loss'] == [(3690, 0.9)]  # step 7380 of twice as many
    assert log.metrics['bbox_mAP'] == [(14660, pytest.approx(30.28))]
    assert logs.read_log([file], 7330, 7330).losses['loss'] == [(7380, 0.9)]
    text.rename(text.with_name('another.log'))  # of another run
    assert logs.read_log([file], 7330).losses['loss'] == [(7380, 0.9)]


def test_text_log_of_mmcv_tells_the_length_of_an_epoch(tmp_path):
    file = detection_log(tmp_path / '20260101_000000.log.json', True)
    (tmp_path / '20251231_000000.log').write_text('INFO - Epoch [1][50/99] lr: 2.0e-04\n')
    assert logs.read_log([file], 7330).losses['loss'] == [(7380, 0.9)]
    text = tmp_path / '20260101_000000.log'
    text.write_text('mmdet - INFO - Epoch [2][50/14660] lr: 2.0e-04, loss: 0.9\n')
    assert logs.read_log([file], 7330).losses['loss'] == [(7330 + 25, 0.9)]


def test_log_of_a_plain_trainer_is_compared(tmp_path, capsys):
    """As RecNeXt's, SLaK's and DCLS' trainers write it, on the points of the published run."""
    run = CURVES[CLS]
    loss = dict(run['means']['points'])
    entries = [
        dict(train_lr=1e-3, train_loss=loss[step], test_loss=1.0, test_acc1=top1, test_acc5=top5,
             epoch=step // 1251 - 1, n_parameters=8752368)
        for step, top1, top5 in run['metrics']['points']
    ]  # fmt: skip
    log = write(tmp_path / f'{CLS}.txt', entries)
    assert tool.main([str(log), '--reference', CLS]) == 0
    said = capsys.readouterr().out
    assert 'top1 follows the published curve' in said and 'epoch 300' in said
    entries[20]['test_acc1'] -= 5
    assert tool.main([str(write(log, entries)), '--reference', CLS, '--keys', 'top1']) == 1
    assert 'top1 leaves the published curve at step 200160' in capsys.readouterr().out


def test_classifier_of_mmengine_is_compared(tmp_path):
    entries = [
        dict(loss=6.9, epoch=1, iter=1251, step=1251),
        {'accuracy/top1': 0.2, 'accuracy/top5': 0.9, 'step': 1},
    ]
    log = logs.read_log([write(tmp_path / 'scalars.json', entries)], 1251)
    assert log.metrics == {'top1': [(1251, 0.2)], 'top5': [(1251, 0.9)]}
    rows = list(curves.compare(log, CURVES[CLS], 0.15, 1.5, at=[1251]))
    assert [(row.name, row.off) for row in rows] == [
        ('loss (mean over 1251)', False),
        ('top1', False),
        ('top5', False),
    ]


def test_differences_at_given_steps_are_interpolated_and_marked(tmp_path, capsys):
    log = write(tmp_path / 'scalars.json', mmengine_seg(until=16000))
    tool.main([str(log), '--reference', SEG, '--at', '8000', '10000', '--keys', 'loss'])
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in said if line[0] in ('8000', '10000')]
    points = dict(CURVES[SEG]['losses']['points'])
    halfway = f'{(points[8000] + points[12000]) / 2:.4g}'
    assert [row[1:4] for row in rows] == [
        ['loss', '0.6134', '0.6134'],
        ['loss', '~', halfway],
        ['loss', '(mean', 'over'],
        ['loss', '(mean', 'over'],
    ]
    assert rows[1][4] == halfway


def test_another_log_can_be_the_reference(tmp_path, capsys):
    ours = write(tmp_path / 'ours.json', mmengine_seg())
    theirs = write(tmp_path / 'theirs' / 'scalars.json', mmengine_seg(lambda s, v: 2 * v))
    assert tool.main([str(ours), '--reference', str(theirs.parent)]) == 1
    said = capsys.readouterr().out
    assert said.count('-50.0%') == 8 and 'mIoU follows the published curve' in said
    assert tool.main([str(ours), '--reference', str(ours)]) == 0


def test_picture_has_the_log_over_the_published_curve(tmp_path):
    log = logs.read_log([write(tmp_path / 'scalars.json', mmengine_seg())])
    figure = curves.draw(log, CURVES[SEG], 'title', ['loss', 'mIoU'])
    loss, metric = figure.axes
    assert [line.get_label() for line in loss.lines] == ['published', 'published, mean', 'log']
    assert [line.get_label() for line in metric.lines] == ['published', 'log']
    assert list(loss.lines[2].get_xdata()) == list(range(50, 8001, 50))
    assert list(metric.lines[1].get_ydata()) == [32.8]
    out = tmp_path / 'pictures' / 'curve.png'
    tool.main([str(tmp_path / 'scalars.json'), '--reference', SEG, '--out', str(out)])
    assert min(Image.open(out).size) > 300


def refused(capsys, *arguments):
    assert tool.main([str(each) for each in arguments]) == 2
    return capsys.readouterr().err


def test_nothing_to_compare_is_an_error_of_its_own(tmp_path, capsys):
    log = write(tmp_path / 'scalars.json', [dict(loss=1.0, step=7)])
    assert tool.main([str(log), '--reference', SEG]) == 2
    assert 'no scalars.json or *.log.json below' in refused(capsys, tmp_path / 'absent')
    said = refused(capsys, log, '--reference', 'fpn_recnext_m9_ade20k')
    assert "'fpn_recnext_m9_ade20k' is neither a log nor a published run" in said
    assert 'fpn_recnext_m3_ade20k' in said
    assert 'pass --reference NAME' in refused(capsys, log)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('', 'no loss and no metric in '),
        ('{"env_info": "..."}\n', 'no loss and no metric in '),
        ('2026/11/28 - mmengine - INFO\nx\n', 'line 1 of .* is no JSON object'),
        ('{"step": 50, "loss": 1.0}\n{"step": 100, "lo\n{"step": 150, "loss": 1}\n', 'line 2 of '),
        ('{"a": 1}\n', 'has neither step, mode nor train_loss: a'),
        ('{"train_loss": 1.0, "epoch": 0}\n', 'pass --iterations-per-epoch'),
    ],
)
def test_files_that_are_no_logs_are_refused(text, words, tmp_path, capsys):
    log = tmp_path / 'scalars.json'
    log.write_text(text)
    assert re.search(words, refused(capsys, log, '--reference', SEG))


def test_a_last_line_that_a_kill_cut_off_is_left_out_and_said(tmp_path):
    log = tmp_path / 'scalars.json'
    log.write_text('{"step": 50, "loss": 1.0}\n{"step": 100, "lo')
    found = logs.read_log([log])
    assert found.losses == {'loss': [(50, 1.0)]}
    assert found.files[0].endswith('steps 50 to 50, the last line is cut off')


@pytest.mark.parametrize(
    ('key', 'words'),
    [
        ('mIuO', "the published run has no 'mIuO'; close to it: mIoU"),
        ('mAcc', "the log has no 'mAcc'; close to it: "),
    ],
)
def test_an_unknown_quantity_is_refused_with_the_closest(key, words, tmp_path, capsys):
    log = write(tmp_path / 'scalars.json', [dict(loss=1.0, step=50), dict(aAcc=1, step=50)])
    assert words in refused(capsys, log, '--reference', SEG, '--keys', 'loss', key)


def test_epochs_of_a_curve_in_iterations_are_refused(tmp_path, capsys):
    log = write(tmp_path / 'scalars.json', mmengine_seg())
    assert '--at-epoch' in refused(capsys, log, '--reference', SEG, '--at-epoch', '3')


def test_anchors_are_complete_and_end_at_the_published_results():
    dense = {name: run for name, run in CURVES.items() if not name.endswith('in1k')}
    assert len(dense) == 12 and len(CURVES) == 12 + 36
    finals = {name: run['metrics']['points'][-1] for name, run in CURVES.items()}
    assert [finals[f'fpn_recnext_{size}_ade20k'][:2] for size in ('m3', 'm5', 'a3', 'a5')] == [
        [80000, 40.98],
        [80000, 46.01],
        [80000, 41.93],
        [80000, 46.53],
    ]
    assert [finals[f'mask_rcnn_recnext_{size}_coco'][1] for size in ('m3', 'm4', 'a5')] == [
        41.74,
        43.17,
        44.01,
    ]
    for name, run in CURVES.items():
        for table in (run[kind] for kind in ('losses', 'means', 'metrics') if kind in run):
            steps = [point[0] for point in table['points']]
            assert steps == sorted(set(steps))
            assert all(len(point) == 1 + len(table['names']) for point in table['points'])
        assert (ROOT / 'configs' / f'{name}.py').is_file()
        if 'per_epoch' in run:
            assert run['metrics']['points'][0][0] == run['per_epoch']


def test_classifiers_end_near_their_published_accuracy():
    """Rows give the best epoch, curves each tenth: the last is below by at most half a point."""
    index = yaml.safe_load((ROOT / 'configs/metafiles/recnext_in1k.yml').read_text())
    for model in index['Models']:
        best = max(next(iter(each['Metrics'].values())) for each in model['Results'])
        last = CURVES[model['Name']]['metrics']['points'][-1][1]
        assert best - 0.5 <= last <= best + 0.05, model['Name']
