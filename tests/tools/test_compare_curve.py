"""Published-curve comparison on logs of both generations of the toolboxes."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CURVES = json.loads((ROOT / 'configs/metafiles/recnext_curves.json').read_text())['runs']
SEG, DET = 'fpn_recnext_m3_ade20k', 'mask_rcnn_recnext_m3_coco'


def load_tool():
    spec = importlib.util.spec_from_file_location('compare_curve', ROOT / 'tools/compare_curve.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()


def losses_of(name, until):
    """Loss every 50 iterations, interpolated between the published anchors."""
    anchors = [(0, CURVES[name]['losses']['points'][0][1])]
    anchors += [tuple(point[:2]) for point in CURVES[name]['losses']['points']]
    for step in range(50, until + 1, 50):
        (a, left), (b, right) = next(
            pair for pair in zip(anchors, anchors[1:]) if pair[0][0] < step <= pair[1][0]
        )
        yield step, left + (right - left) * (step - a) / (b - a)


def write(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(json.dumps(entry) for entry in entries))
    return path


def mmengine_seg(change=lambda step, value: value, until=8000):
    entries = [
        dict(lr=1e-4, loss=change(step, value), iter=step, step=step, **{'decode.loss_ce': value})
        for step, value in losses_of(SEG, until)
    ]
    return [*entries, dict(aAcc=77.39, mIoU=32.8, mAcc=43.06, step=8000)]


def test_log_on_the_curve_follows_it(tmp_path, capsys):
    write(tmp_path / SEG / '2026' / 'vis_data' / 'scalars.json', mmengine_seg())
    assert tool.main([str(tmp_path / SEG), '--loss-tolerance', '0.25']) == 0
    said = capsys.readouterr().out
    assert 'loss follows the published curve' in said
    assert 'mIoU follows the published curve' in said
    assert 'anchors compared up to step 8000' in said


def test_departure_is_located(tmp_path, capsys):
    entries = mmengine_seg(lambda step, value: value * (1.5 if step > 600 else 1.0))
    log = write(tmp_path / 'scalars.json', entries)
    assert tool.main([str(log), '--reference', SEG, '--loss-tolerance', '0.25']) == 1
    said = capsys.readouterr().out
    assert 'loss leaves the published curve at step 750' in said
    assert 'mIoU follows the published curve' in said


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
    want, got = tool.read_log(new), tool.read_log(write(tmp_path / 'old.log.json', old))
    assert got.losses == want.losses
    assert got.metrics.keys() == want.metrics.keys()
    assert got.metrics['mIoU'] == [(8000, pytest.approx(32.8))]


@pytest.mark.parametrize('old', [True, False], ids=['mmcv', 'mmengine'])
def test_detection_log_counts_iterations_over_epochs(tmp_path, old):
    train = {True: dict(mode='train'), False: dict(step=7330 + 50)}[old]
    scores = {
        True: dict(mode='val', bbox_mAP=0.3028, segm_mAP=0.2964),
        False: {'step': 2, 'coco/bbox_mAP': 0.3028, 'coco/segm_mAP': 0.2964},
    }[old]
    log = tool.read_log(
        write(
            tmp_path / 'x.json',
            [
                dict(epoch=2, iter=50, loss=0.9, loss_cls=0.3, acc=90.0, **train),
                dict(epoch=2, iter=5000, **scores),
            ],
        )
    )
    assert log.losses == {'loss': [(7380, 0.9)], 'loss_cls': [(7380, 0.3)]}
    assert log.metrics['bbox_mAP'] == [(14660, pytest.approx(30.28))]
    rows = list(tool.compare(log, CURVES[DET], 0.15, 1.5))
    (row,) = [row for row in rows if row.name == 'bbox_mAP' and row.found is not None]
    assert (row.step, row.published, row.off) == (14660, 30.28, False)


def test_nothing_to_compare_is_an_error_of_its_own(tmp_path, capsys):
    log = write(tmp_path / 'scalars.json', [dict(loss=1.0, step=7)])
    assert tool.main([str(log), '--reference', SEG]) == 2
    assert tool.main([str(tmp_path / 'absent')]) == 2
    assert 'no scalars.json or *.log.json below' in capsys.readouterr().err
    assert tool.main([str(log), '--reference', 'fpn_recnext_m9_ade20k']) == 2
    assert "'fpn_recnext_m9_ade20k' is not one of" in capsys.readouterr().err


def test_anchors_are_complete_and_end_at_the_published_results():
    assert len(CURVES) == 12
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
    for run in CURVES.values():
        for table in (run['losses'], run['means'], run['metrics']):
            steps = [point[0] for point in table['points']]
            assert steps == sorted(set(steps))
            assert all(len(point) == 1 + len(table['names']) for point in table['points'])
