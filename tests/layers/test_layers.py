"""Shared layers against closed forms and torch's own modules in float64."""

import pytest
import torch
from torch import nn

from mmlk.layers import (
    DropPath,
    LayerNorm2d,
    build_norm,
    drop_path_schedule,
    fold_norm_after,
    fold_norm_before,
    fold_scale_after,
    recompute,
)
from tests.cases import TOLERANCE, assert_close

EXACT = TOLERANCE[torch.float64][0]


def batch_norm(channels):
    norm = nn.BatchNorm2d(channels).double().eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def test_layer_norm_over_channels_matches_the_formula_in_both_layouts():
    norm = LayerNorm2d(5).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    centred = x - x.mean(1, keepdim=True)
    want = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    want = want * norm.weight.reshape(-1, 1, 1) + norm.bias.reshape(-1, 1, 1)
    for layout in (torch.contiguous_format, torch.channels_last):
        got = norm(x.contiguous(memory_format=layout))
        assert_close(str(layout), got, want, EXACT)
        assert got.is_contiguous(memory_format=layout)


@pytest.mark.parametrize('groups', [1, 2, 6])
@pytest.mark.parametrize('bias', [True, False])
def test_norm_folds_after_any_convolution(groups, bias):
    conv = nn.Conv2d(6, 12, 3, 2, 1, groups=groups, bias=bias).double()
    norm = batch_norm(12)
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    assert_close('after', fold_norm_after(conv, norm)(x), norm(conv(x)), EXACT)


@pytest.mark.parametrize('groups', [1, 2, 6])
@pytest.mark.parametrize('bias', [True, False])
def test_norm_folds_before_unpadded_convolution(groups, bias):
    conv = nn.Conv2d(6, 12, 2, 2, groups=groups, bias=bias).double()
    norm = batch_norm(6)
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    assert_close('before', fold_norm_before(norm, conv)(x), conv(norm(x)), EXACT)


def test_norm_does_not_fold_before_a_padded_convolution():
    with pytest.raises(ValueError, match='padding'):
        fold_norm_before(batch_norm(6), nn.Conv2d(6, 6, 3, padding=1).double())


def test_norm_without_statistics_does_not_fold():
    with pytest.raises(ValueError, match='no running statistics'):
        fold_norm_after(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))


def test_scale_folds():
    conv, scale = nn.Conv2d(4, 6, 1).double(), torch.randn(6, dtype=torch.float64)
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    assert_close(
        'scale', fold_scale_after(conv, scale)(x), conv(x) * scale.reshape(-1, 1, 1), EXACT
    )


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    layer = DropPath(0.25).train()
    y = layer(torch.ones(4000, 2, 1, 1))
    kept = y[:, 0, 0, 0] != 0
    assert torch.equal(y[:, 0], y[:, 1])
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / 0.75))
    assert abs(kept.float().mean() - 0.75) < 0.03
    assert layer.eval()(y) is y


def test_drop_path_schedule():
    assert drop_path_schedule(0.3, (1, 2, 1)) == [
        [0.0],
        pytest.approx([0.1, 0.2]),
        [pytest.approx(0.3)],
    ]
    with pytest.raises(ValueError, match='1.0'):
        DropPath(1.0)


def test_build_norm_names_its_choices_and_freezes():
    assert isinstance(build_norm(dict(type='SyncBN', eps=1e-3), 4), nn.SyncBatchNorm)
    assert not build_norm(dict(type='BN', requires_grad=False), 4).weight.requires_grad
    with pytest.raises(ValueError, match="'IN' is not one of BN, SyncBN"):
        build_norm(dict(type='IN'), 4)


def test_recomputation_records_statistics_once():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    recompute(module, x).sum().backward()
    assert module[1].num_batches_tracked == 1
    mean = module[0](x).mean((0, 2, 3))
    torch.testing.assert_close(module[1].running_mean, 0.1 * mean)
    assert module[1].momentum == 0.1
