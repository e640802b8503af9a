"""Weights in timm's forms give timm's outputs."""

from __future__ import annotations

import pytest
import torch

from mmlk.backbones import InceptionNeXt
from tests.cases import GOLDEN_NETWORK, assert_close
from tests.golden_weights import golden_input, load_golden_weights

timm = pytest.importorskip('timm')


def assert_same_features(path, expected, x):
    pretrained = dict(type='Pretrained', checkpoint=str(path))
    backbone = InceptionNeXt('atto', output_norm=False, init_cfg=pretrained)
    backbone.init_weights()
    for stage, (got, want) in enumerate(zip(backbone.eval()(x), expected, strict=True)):
        assert_close(f'stage {stage}', got, want, GOLDEN_NETWORK)


@torch.no_grad()
def test_features_only_form(tmp_path):
    network = load_golden_weights(timm.create_model('inception_next_atto', features_only=True))
    torch.save({'state_dict': network.state_dict(), 'epoch': 1}, tmp_path / 'a.pth')
    x = golden_input((1, 3, 64, 96))
    assert_same_features(tmp_path / 'a.pth', network.eval()(x), x)


@torch.no_grad()
def test_classifier_in_safetensors(tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    network = load_golden_weights(timm.create_model('inception_next_atto'))
    save_file(network.state_dict(), tmp_path / 'model.safetensors')
    x = golden_input((1, 3, 64, 96))
    expected = network.eval().forward_intermediates(x, intermediates_only=True)
    assert_same_features(tmp_path / 'model.safetensors', expected, x)
