"""Heads of MMSegmentation in fewer operations: the same results, other steps, and the way back."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmlk
from mmlk.models.folding import folded_copy
from mmlk.surgery import resized
from mmlk.surgery.heads import considered_heads, take_head
from tests.cases import TOLERANCE, assert_close

mmseg = pytest.importorskip('mmseg')
from mmseg.models import decode_heads  # noqa: E402

from mmlk.surgery import segmentors  # noqa: E402

EXACT = TOLERANCE[torch.float64][1]
COMMON = dict(
    channels=6, num_classes=5, norm_cfg=dict(type='BN'), loss_decode=dict(type='CrossEntropyLoss')
)
OPTIONS = {
    'UPerHead': dict(in_channels=[4, 5, 6, 7], in_index=[0, 1, 2, 3], pool_scales=(1, 2, 3, 6)),
    'PSPHead': dict(in_channels=7, in_index=3),
    'FPNHead': dict(
        in_channels=[4, 5, 6, 7], in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32]
    ),
}
SIZES = {
    'even': ((32, 24), (16, 12), (8, 6), (4, 3)),
    # FPNHead doubles maps and resizes the sum of doublings; the others take any size
    'odd': ((33, 27), (17, 14), (9, 7), (5, 4)),
    'one': ((4, 4), (2, 2), (1, 1), (1, 1)),
}


def head_of(kind, align_corners=False, **options):
    """A head in double precision whose norms and biases are no identities."""
    torch.manual_seed(0)
    settings = {**COMMON, **OPTIONS[kind], **options}
    head = getattr(decode_heads, kind)(align_corners=align_corners, **settings).double().eval()
    for name, value in head.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + (0.5 if 'var' in name else -0.3))
    return head


def maps_of(size='even', batch=2):
    torch.manual_seed(1)
    return [
        torch.randn(batch, channels, *side, dtype=torch.float64)
        for channels, side in zip((4, 5, 6, 7), SIZES[size])
    ]


def test_every_kind_is_tested():
    assert {each.__name__ for each in segmentors.PARTS} == set(OPTIONS)


@pytest.mark.parametrize('taps', [(3, 3), (1, 5)])
@pytest.mark.parametrize('size', [(13, 20), (12, 18), (7, 9)])
@pytest.mark.parametrize(
    'mode, align', [('bilinear', False), ('bilinear', True), ('nearest', None)]
)
def test_convolution_of_a_resized_map(mode, align, size, taps):
    x, weight = (torch.randn(s, dtype=torch.float64) for s in ((2, 5, 6, 9), (7, 5, *taps)))
    start = torch.randn(2, 7, *size, dtype=torch.float64)
    enlarged = F.interpolate(x, size, mode=mode, align_corners=align)
    want = start + F.conv2d(enlarged, weight, padding=(taps[0] // 2, taps[1] // 2))
    got = resized.add_convolved(start.clone(), x, weight, mode, align)
    assert_close('sum', got, want, EXACT)


@pytest.mark.parametrize('size, align', [('even', False), ('odd', True), ('one', False)])
@pytest.mark.parametrize('kind', OPTIONS)
def test_heads_compute_the_same_in_other_steps(kind, size, align, monkeypatch):
    head, maps, calls = head_of(kind, align), maps_of(size), []
    with torch.no_grad():
        want = head(maps)
    ((found, reason),) = considered_heads(nn.ModuleList([head])).values()
    assert (found, reason) == ('0', None)
    take_head(head)
    add = segmentors.add_convolved
    monkeypatch.setattr(segmentors, 'add_convolved', lambda *a: calls.append(1) or add(*a))
    with torch.no_grad():
        assert_close(kind, head(maps), want, EXACT)
    assert calls or size == 'one'
    calls.clear()
    assert torch.equal(head(maps).detach(), want), 'with gradients, as before'
    assert not calls
    head.train()
    with torch.no_grad():
        head(maps)
    assert not calls


@pytest.mark.parametrize('kind', OPTIONS)
def test_heads_are_copied_and_given_back(kind):
    head, maps = nn.ModuleDict(dict(head=head_of(kind))), maps_of()
    state = copy.deepcopy(head.state_dict())
    with torch.no_grad():
        want = head['head'](maps)
    take_head(head['head'])
    for each in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        with torch.no_grad():
            assert_close('copy', each['head'](maps), want, EXACT)
        assert each.state_dict().keys() == state.keys()
        assert mmlk.restore(each) == ('head',) and type(each['head']).__name__ == kind
        with torch.no_grad():
            assert torch.equal(each['head'](maps), want)
    assert mmlk.restore(head) == ('head',) and mmlk.restore(head) == ()


@pytest.mark.slow
def test_exported_graphs_hold_plain_convolutions():
    head, maps = head_of('FPNHead'), maps_of()
    take_head(head)
    with torch.no_grad():
        program = torch.export.export(head, (maps,))
    targets = [str(each.target) for each in program.graph.nodes if each.op == 'call_function']
    assert sum('conv2d' in each for each in targets) == 8
    assert not any('baddbmm' in each for each in targets)


def dilate(head):
    head.fpn_bottleneck.conv.dilation = (2, 2)


def watch(head):
    head.fpn_bottleneck.register_forward_hook(lambda *_: None)


def reorder(head):
    head.fpn_bottleneck.order = ('norm', 'conv', 'act')


@pytest.mark.parametrize(
    'change, reason',
    [(dilate, 'fpn_bottleneck is more than'), (watch, 'hooks watch'), (reorder, 'is more than')],
)
def test_changed_heads_are_left_alone(change, reason):
    head = head_of('UPerHead')
    change(head)
    ((_, found),) = considered_heads(head).values()
    assert reason in found


def test_heads_of_other_classes_are_not_considered():
    class Own(decode_heads.UPerHead):
        pass

    head = head_of('UPerHead')
    head.__class__ = Own
    assert considered_heads(head) == {} and considered_heads(nn.Linear(2, 2)) == {}


class Segmentor(nn.Module):
    """A backbone of this package under a head of MMSegmentation."""

    def __init__(self, kind):
        super().__init__()
        arch = dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 24))
        self.backbone = mmlk.networks.InceptionNeXt(arch)
        channels = [8, 16, 16, 24] if kind != 'PSPHead' else 24
        self.head = head_of(kind, in_channels=channels).float()

    def forward(self, x):
        return self.head(self.backbone(x))


@pytest.mark.parametrize('kind', OPTIONS)
def test_accelerate_takes_heads_and_verifies_them(kind, monkeypatch):
    model, x = Segmentor(kind).eval(), torch.randn(1, 3, 64, 96)
    with mmlk.accelerate(model, x) as done:
        assert done.taken[-1] == 'head' and type(model.head).__name__ == f'Accelerated{kind}'
        assert 0 < done.error < 1e-4 and kind in str(done)
    assert type(model.head).__name__ == kind
    add = segmentors.add_convolved
    monkeypatch.setattr(segmentors, 'add_convolved', lambda t, x, *a: add(t, 1.01 * x, *a))
    with pytest.raises(ValueError, match='the network has the output off by .* as before'):
        mmlk.accelerate(model, x)
    assert type(model.head).__name__ == kind


@pytest.mark.parametrize('kind', OPTIONS)
def test_folded_copies_have_accelerated_heads(kind):
    model, x = Segmentor(kind).eval(), torch.randn(1, 3, 64, 96)
    copied, reason = folded_copy(model)
    assert reason == '' and type(copied.head).__name__ == f'Accelerated{kind}'
    assert type(model.head).__name__ == kind
    with torch.inference_mode():
        assert_close(kind, copied(x), model(x), 100 * TOLERANCE[torch.float32][0])
