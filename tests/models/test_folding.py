"""Folded copies of whole models: the same results, and the model as it was."""

import pytest
import torch
from torch import nn

from mmlk.heads import HEADS
from mmlk.models.folding import folded_copy
from mmlk.networks import InceptionNeXt, SLaK
from tests.cases import TOLERANCE, assert_close
from tests.networks.families import FAMILIES, build

BOUND = 100 * TOLERANCE[torch.float32][0]


class Whole(nn.Module):
    """A model with a backbone, a layer of its own and a head of this package."""

    def __init__(self, family):
        super().__init__()
        self.backbone = build(family, False)
        channels = self.backbone.out_channels[-1]
        self.neck = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))
        self.head = HEADS[self.backbone.family](channels, 5)

    def forward(self, x):
        return self.head(self.neck(self.backbone(x)[-1]))


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('family', FAMILIES)
def test_copy_computes_the_same_and_leaves_the_model(family, training):
    model = Whole(family).eval()
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = model(x)
    model.train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    copied, reason = folded_copy(model)
    assert reason == '' and copied.backbone.deployed and copied.head.deployed
    with torch.no_grad():
        assert_close('scores', copied(x), expected, BOUND)
    assert not (model.backbone.deployed or model.head.deployed)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert folded_copy(copied) == (copied, 'no part of it folds')


def test_model_without_our_parts_is_returned():
    model = nn.Conv2d(1, 1, 1)
    assert folded_copy(model) == (model, 'no part of it folds')


def test_watched_layers_are_kept():
    model = Whole('slak')
    model.backbone.stages[1].register_forward_hook(lambda *_: None)
    copied, reason = folded_copy(model)
    assert copied is model and reason.startswith('hooks watch backbone.stages.1')


def test_norms_without_statistics_are_kept_and_the_rest_is_folded():
    """In eval mode they take the statistics of the batch, in the copy as well."""
    arch = dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16))
    torch.manual_seed(0)
    model = nn.Sequential(
        InceptionNeXt(
            arch, norm_cfg=dict(type='BN', track_running_stats=False), layer_scale_init=0.5
        )
    ).eval()
    copied, reason = folded_copy(model)
    assert not reason and copied[0].deployed and not model[0].deployed
    norms, gammas = (
        [name for name, each in copied.named_modules() if isinstance(each, nn.BatchNorm2d)],
        [name for name, _ in copied.named_parameters() if name.endswith('gamma')],
    )
    assert len(norms) >= 4 and not gammas
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for got, want in zip(copied(x), model(x), strict=True):
            assert_close('folded', got, want, BOUND)


def test_branches_whose_norms_have_no_statistics_leave_the_model_as_it_is():
    model = nn.Sequential(SLaK('tiny', norm_cfg=dict(type='BN', track_running_stats=False)))
    copied, reason = folded_copy(model)
    assert copied is model and 'keeps no running statistics' in reason
    assert not model[0].deployed
