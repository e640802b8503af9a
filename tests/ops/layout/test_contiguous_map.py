"""Maps in the other layout, and copies of parts of maps, against torch's."""

import pytest
import torch

from mmlk.ops import contiguous_map, explain
from mmlk.ops.layout import loops
from tests.ops.helpers import LAYOUTS

FORMS = [torch.contiguous_format, torch.channels_last]
SHAPES = [
    (2, 24, 12, 10),
    (1, 3, 33, 17),
    (3, 17, 5, 13),
    (2, 1, 9, 4),
    (1, 37, 1, 1),
    (2, 4, 1, 70),
]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('shape', SHAPES)
def test_equals_torch_with_its_strides(shape, layout, form):
    x = LAYOUTS[layout](shape)
    with torch.no_grad():
        got = contiguous_map(x, form)
    want = x.contiguous(memory_format=form)
    assert torch.equal(got, want) and got.stride() == want.stride()
    assert (got is x) == (want is x)


@pytest.mark.parametrize('form', FORMS)
def test_the_loops_are_taken_without_gradients(form):
    other = FORMS[form == FORMS[0]]
    x = torch.randn(2, 5, 6, 7).contiguous(memory_format=other)
    with torch.no_grad():
        assert 'cpu: used' in explain('contiguous_map', x, form)
        assert 'the map has that layout' in explain('contiguous_map', x, other)
        assert 'the map has neither layout' in explain('contiguous_map', x[:, :, ::2], form)
        assert 'not empty' in explain('contiguous_map', x[:0], form)
    assert 'gradients' in explain('contiguous_map', x, form)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        assert 'autocast' in explain('contiguous_map', x, form)


def test_gradients_are_those_of_a_copy():
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    grad = torch.randn(2, 3, 4, 5)
    contiguous_map(x, torch.channels_last).backward(grad)
    assert torch.equal(x.grad, grad)


def test_what_is_no_map_is_refused():
    with pytest.raises(ValueError, match=r'contiguous_map: x \(2, 3\) is not \(N, C, H, W\)'):
        contiguous_map(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r'memory_format torch\.preserve_format is not'):
        contiguous_map(torch.zeros(1, 1, 1, 1), torch.preserve_format)


@pytest.mark.parametrize('channels', [(0, 5), (3, 19), (7, 8)])
def test_channels_are_copied_and_no_others(channels):
    first, end = channels
    x, out = (torch.randn(2, 6, 7, 23).permute(0, 3, 1, 2) for _ in range(2))
    want = out.clone()
    want[:, first:end] = x[:, first:end]
    loops.copy_channels(x[:, first:end], out[:, first:end])
    assert torch.equal(out, want)


@pytest.mark.parametrize(('size', 'patch'), [((6, 8), (2, 2)), ((7, 9), (3, 2)), ((4, 5), (4, 1))])
@pytest.mark.parametrize('channels', [1, 3, 16, 21])
def test_patches_are_rows(size, patch, channels):
    (height, width), (kh, kw) = size, patch
    x = torch.randn(2, height, width, channels).permute(0, 3, 1, 2)
    got = loops.patches(x, kh, kw)
    cells = x.unfold(2, kh, kh).unfold(3, kw, kw).permute(0, 2, 3, 4, 5, 1)
    assert torch.equal(got, cells.reshape(-1, kh * kw * channels))


def test_loops_refuse_other_memory():
    x = torch.randn(1, 4, 6, 6)
    last = x.contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match='stride 1 along its channels'):
        loops.copy_channels(x, last)
    with pytest.raises(ValueError, match='float64'):
        loops.patches(last.double(), 2, 2)
    with pytest.raises(ValueError, match='gaps between its pixels'):
        loops.patches(last[:, :3], 2, 2)
    with pytest.raises(ValueError, match='is not of shape'):
        loops.copy_channels(last, last[:, :, :3])
    with pytest.raises(ValueError, match='contiguous, in float32'):
        loops.transposed(x[0].transpose(1, 2))
