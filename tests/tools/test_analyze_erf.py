"""Effective receptive fields against closed forms, and the tool that draws them."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from mmlk.analysis.erf import areas, contribution_scores, logarithmic
from tests.cases import TOLERANCE, assert_close
from tests.scripts import load_tool

ROOT = Path(__file__).parents[2]
CLOSE = TOLERANCE[torch.float32][0]


tool = load_tool('analyze_erf.py')


def depthwise_ones(kernel, channels=3):
    layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
    nn.init.ones_(layer.weight)
    return layer


def random_images(count=2, size=(41, 37)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 3, *size, generator=generator) for _ in range(count)]


def centred(square, size):
    """A square of values in the middle of zeros."""
    whole, (height, width) = torch.zeros(size, dtype=torch.float64), square.shape
    y, x = size[0] // 2 - height // 2, size[1] // 2 - width // 2
    whole[y : y + height, x : x + width] = square
    return whole


@pytest.mark.parametrize('kernel', [1, 7, 11])
def test_field_of_one_convolution_is_its_kernel(kernel):
    scores = contribution_scores(depthwise_ones(kernel), random_images())
    want = centred(torch.full((kernel, kernel), 3.0, dtype=torch.float64), (41, 37))
    assert_close('scores', scores, want, CLOSE)


def test_field_of_a_stack_is_the_convolution_of_the_kernels():
    scores = contribution_scores(
        nn.Sequential(depthwise_ones(5), depthwise_ones(5)), random_images()
    )
    tent = torch.tensor([1.0, 2, 3, 4, 5, 4, 3, 2, 1], dtype=torch.float64)
    assert_close('scores', scores, centred(3 * torch.outer(tent, tent), (41, 37)), CLOSE)


def test_negative_part_is_removed_and_images_are_averaged():
    layer = nn.Conv2d(3, 2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -5.0, 0.25], [2.0, 1.0, 0.5]])[..., None, None])
    once, twice = (
        contribution_scores(layer, random_images(count)) for count in (1, 4)
    )  # a linear layer: every image gives the same
    assert_close('averaged', twice, once, CLOSE)
    # sums over the outputs: 3, -4 and 0.75 for the colours
    assert scores_at_centre(once) == pytest.approx(3.75)


def scores_at_centre(scores):
    assert torch.count_nonzero(scores) == 1
    return scores[scores.shape[0] // 2, scores.shape[1] // 2].item()


def test_last_map_of_several_is_taken():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = depthwise_ones(3), depthwise_ones(5)

        def forward(self, x):
            y = self.first(x)
            return [y, self.second(y)]

    sides = [
        int(contribution_scores(Two(), random_images(), index).count_nonzero() ** 0.5)
        for index in (0, -1)
    ]
    assert sides == [3, 7]


@pytest.mark.parametrize(
    ('threshold', 'side'), [(0.2, 5), (0.3, 7), (0.5, 9), (0.99, 11), (1 / 121 - 1e-6, 1)]
)
def test_areas_of_a_uniform_square_are_known(threshold, side):
    """An s x s part of an 11 x 11 field holds (s / 11)^2 of it."""
    field = centred(torch.ones(11, 11, dtype=torch.float64), (40, 50))
    (found,) = areas(field, [threshold])
    assert (found.side, found.ratio) == (side, side * side / 2000)
    assert (side / 11) ** 2 > threshold >= ((side - 2) / 11) ** 2 or side == 1


def test_area_has_to_hold_more_than_the_share():
    """Exactly a half of what 1 + 8 pixels hold: the larger square is needed, as in RepLKNet's script."""
    field = centred(torch.tensor([[1.0, 1, 1], [1, 8, 1], [1, 1, 1]]).double(), (9, 9))
    assert [area.side for area in areas(field, [0.49, 0.5])] == [1, 3]


def test_logarithm_is_scaled_to_one():
    scores = torch.tensor([[0.0, 9.0], [99.0, 999.0]]).double()
    assert_close('log', logarithmic(scores), torch.tensor([[0, 1 / 3], [2 / 3, 1]]), CLOSE)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match='no image was given'):
        contribution_scores(depthwise_ones(3), [])
    with pytest.raises(ValueError, match='the map is constant'):
        logarithmic(torch.zeros(5, 5))
    with pytest.raises(ValueError, match='threshold 1.5 is not between'):
        areas(torch.ones(5, 5), [1.5])
    with pytest.raises(
        ValueError, match=r'9 pixels wide, holds no more than 81.0 % .* larger image'
    ):
        areas(torch.ones(10, 10), [0.9])
    broken = depthwise_ones(3)
    nn.init.constant_(broken.weight, torch.nan)
    with pytest.raises(RuntimeError, match='not finite'):
        contribution_scores(broken, random_images())


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    for index in range(2):
        Image.linear_gradient('L').rotate(90 * index).convert('RGB').save(folder / f'{index}.png')
    return folder


NAMES = ('inceptionnext_atto', 'recnext_m0')


@pytest.mark.slow
def test_networks_side_by_side_on_a_folder(photos, tmp_path, capsys):
    out = tmp_path / 'pictures' / 'erf.png'
    options = ['--size', '64', '--thresholds', '0.2', '0.5', '--json', str(tmp_path / 'erf.json')]
    assert tool.main([*NAMES, '--images', str(photos), '--out', str(out), *options]) == 0
    said = capsys.readouterr().out
    figures = json.loads((tmp_path / 'erf.json').read_text())
    assert list(figures) == list(NAMES) and all(f'{name}: t = 20%: ' in said for name in NAMES)
    for found in figures.values():
        assert [each['threshold'] for each in found] == [0.2, 0.5]
        assert found[0]['side'] <= found[1]['side']
        assert found[1]['ratio'] == found[1]['side'] ** 2 / 64**2
    width, height = Image.open(out).size
    assert width > 1.3 * height


def test_random_images_and_a_checkpoint(tmp_path, capsys):
    """Weights of a file count: larger kernels in the stem change the logarithm of the scores."""
    torch.manual_seed(0)
    model = tool.build('recnext_m0', False)
    state = {key.removeprefix('backbone.'): value for key, value in model.state_dict().items()}
    state['stem.stem.0.conv.weight'] = 1000 * state['stem.stem.0.conv.weight']
    torch.save(state, tmp_path / 'mine.pth')
    specs = ['recnext_m0', f'recnext_m0={tmp_path / "mine.pth"}']
    out = str(tmp_path / 'erf.png')
    options = ['--num-images', '1', '--size', '64', '--thresholds', '0.3', '--out', out]
    assert tool.main([*specs, *options]) == 0
    first, second = [line for line in capsys.readouterr().out.splitlines() if 't = 30%' in line]
    assert 'mine.pth' in second
    assert first.rsplit('t = 30%', 1)[1] != second.rsplit('t = 30%', 1)[1]


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['slak_tinny'], "no model 'slak_tinny'; closest names: slak_tiny"),
        (['recnext_m0', '--images', 'nowhere'], "'nowhere' is no file, no folder"),
        (['recnext_m0', '--images', 'broken'], 'broken'),
        (['recnext_m0=nowhere.pth'], 'nowhere.pth'),
    ],
)
def test_refusals_are_clear(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'a.png').write_bytes(b'\x89PNG\r\n')
    with pytest.raises(SystemExit, match=words):
        tool.main([*arguments, '--size', '32'])
    assert not (tmp_path / 'erf.png').exists()
