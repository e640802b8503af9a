"""Expected hours and memory: closed forms, the authors' measurements, and the files that hold them."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mmlk.analysis import costs
from mmlk.analysis.training_step import HalfPrecision, LiveBytes
from tests.scripts import load_tool

ROOT = Path(__file__).parents[2]


tool = load_tool('estimate_cost.py')
ROWS = tool.rows()


def live_bytes(model, x, half=False):
    model, x = model.to('meta'), x.to('meta')
    live = LiveBytes(iter([*model.parameters(), x]))
    with live:
        if half:
            with HalfPrecision():
                loss = model(x).float().sum()
        else:
            loss = model(x).sum()
        held = live.now
        loss.backward()
    return held, live.peak


def test_bytes_of_known_layers():
    """What a layer keeps for its backward pass: ReLU its output, GELU its input."""
    size = 2 * 8 * 32 * 32 * 4
    x = torch.empty(2, 8, 32, 32)
    scalar = 512  # the sum, rounded up
    conv = nn.Conv2d(8, 8, 1, bias=False)
    assert live_bytes(conv, x)[0] == scalar  # keeps x alone; its output is freed
    assert live_bytes(nn.Sequential(conv, nn.ReLU()), x)[0] == scalar + size
    assert live_bytes(nn.Sequential(conv, nn.GELU()), x)[0] == scalar + size
    assert live_bytes(nn.Sequential(conv, nn.GELU(), conv), x)[0] == scalar + 2 * size


def test_peak_is_that_of_the_backward_pass():
    """Two kept maps, and the gradients on both sides of the last layer but one."""
    size = 2 * 8 * 32 * 32 * 4
    conv = nn.Conv2d(8, 8, 1, bias=False)
    _, peak = live_bytes(nn.Sequential(conv, nn.ReLU(), conv), torch.empty(2, 8, 32, 32))
    assert 2 * size <= peak <= 4 * size


def test_half_precision_halves_what_convolutions_hand_on():
    """GELU keeps half of what it kept; the convolution keeps a cast image and a cast weight."""
    size = 2 * 8 * 32 * 32 * 4
    conv = nn.Conv2d(8, 8, 1, bias=False)
    half, _ = live_bytes(nn.Sequential(conv, nn.GELU()), torch.empty(2, 8, 32, 32), half=True)
    assert half == 512 + size // 2 + (size // 2 + 512)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    ['fpn_recnext_m3_ade20k', 'mask_rcnn_dcls_convnext_t_coco'],
)
def test_counted_memory_is_what_the_file_holds(name):
    assert tool.count(ROWS[name]) == pytest.approx(costs.counted_memory()[name], rel=0.01)


def test_every_dense_row_has_hours_and_memory():
    assert set(costs.counted_memory()) == set(ROWS)
    for row in ROWS.values():
        found = costs.expected(row)
        assert 1 < found.hours < 150 and 2000 < found.memory < 60000
        words = ' '.join(costs.sentences(row))
        assert ('measured by the authors' in words) == found.measured == ('computed' not in words)


def measured():
    return [name for name in ROWS if costs.expected(ROWS[name]).measured]


def test_counted_memory_is_near_what_authors_measured():
    """The stated bound of computed memory holds on all rows where there is a measurement."""
    assert len(measured()) == 12
    for name in measured():
        ratio = costs.counted_memory()[name] / costs.expected(ROWS[name]).memory
        assert 1 / 1.13 < ratio < 1.0, (name, ratio)


def test_hours_by_multiply_adds_are_near_what_authors_measured():
    """The stated bound of computed hours: every measured row from the speed of the first."""
    first = ROWS['fpn_recnext_m3_ade20k']
    for name in measured():
        row = ROWS[name]
        images = costs.iterations(row) * row['Metadata']['Batch Size']
        rate = costs.iterations(first) * 32 * costs.macs(first) / costs.expected(first).hours
        ratio = images * costs.macs(row) / rate / costs.expected(row).hours
        assert 0.455 < ratio < 1.005, (name, ratio)


def test_measured_hours_are_seconds_of_all_iterations():
    found = costs.expected(ROWS['mask_rcnn_recnext_m3_coco'])
    assert found.hours == pytest.approx(12 * 7330 * 0.8582 / 3600)
    assert (found.gpus, found.memory) == ('8 x RTX 4090 D', 5979)


def test_computed_hours_follow_from_a_published_speed():
    """22.7 images of 512x512 a second: two images take three times two inferences."""
    found = costs.expected(ROWS['upernet_inceptionnext_t_ade20k'])
    assert found.hours == pytest.approx(160000 * 3 * 2 / 22.7 / 3600, rel=1e-3)
    assert (found.gpus, found.measured) == ('8 x RTX 2080 Ti', False)
    like = costs.expected(ROWS['mask_rcnn_inceptionnext_t_coco'])
    seconds = 3 * 2 / 31.4 * 256.4 / 43.5
    assert like.hours == pytest.approx(12 * 7330 * seconds / 3600, rel=1e-3)


def test_multiply_adds_of_speeds_are_those_of_the_zoo():
    """Speeds of whole networks are per image of 512x512, or of 800x1280 for detectors."""
    for speed in costs.published_costs()['Speeds']:
        own = [name for name in ROWS if costs.fnmatch(name, speed['rows'])]
        assert own, speed
        if speed['source'] in ('inceptionnext', 'dcls'):
            assert any(abs(costs.macs(ROWS[name]) - speed['macs']) < 0.1 for name in own), speed


def test_table_of_the_documentation_is_up_to_date():
    text = tool.DOCUMENT.read_text(encoding='utf-8')
    assert tool.updated(text) == text
    computed = [line for line in text.splitlines() if '| ~' in line]
    assert len(computed) == len(ROWS) - 12 and all(line.count('| ~') == 2 for line in computed)


def test_rows_are_listed_and_unknown_ones_refused(capsys):
    assert tool.main(['fpn_recnext_m3_ade20k']) == 0
    said = capsys.readouterr().out
    assert '3.0 h on 8 x RTX 4090 D (measured by the authors' in said and '4.5 GiB' in said
    with pytest.raises(SystemExit, match='no dense row; close to it: .*fpn_recnext_m3_ade20k'):
        tool.main(['fpn_recnext_m9_ade20k'])


def test_a_row_without_facts_is_refused():
    row = dict(ROWS['upernet_slak_t_ade20k'], Name='upernet_other_t_ade20k')
    with pytest.raises(ValueError, match='has no speed; add it to configs/metafiles/costs.yml'):
        costs.expected(row)


def test_file_is_plain_json():
    path = ROOT / 'configs' / costs.MEMORY_FILE
    assert all(isinstance(value, int) for value in json.loads(path.read_text()).values())
