"""Parameters and multiply-adds that the model zoo states, counted on the meta device."""

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch.utils.flop_counter import FlopCounterMode

import mmlk
from mmlk.backbones import InceptionNeXt, RecNeXt
from mmlk.cli.config import load_config
from mmlk.cli.evaluation import usual_shape
from tests.configs.test_configs import SEGMENTATION, metafile_models

# Sizes at which papers count a whole segmentor.
SIZES = dict(upernet=(512, 2048), fpn=(512, 512))
COUNTED = [
    name
    for name in SEGMENTATION
    if 'mini' not in name and 'FLOPs' in metafile_models()[name.removesuffix('.py')]['Metadata']
]


def multiply_adds(call, size) -> float:
    """Multiply-adds (G) of convolutions and matrix products for one image of ``size``."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(torch.empty(1, 3, *size, device='meta'))
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize(
    ('variant', 'expected'), [('atto', 0.503), ('tiny', 4.189), ('small', 8.356), ('base', 14.841)]
)
def test_inceptionnext_at_224(variant, expected):
    with torch.device('meta'):
        model = InceptionNeXt(variant, output_norm=False).eval()
    dim = model.dims[-1]
    head = (dim * 3 * dim + 3 * dim * 1000) / 1e9  # published figures include the classifier
    assert multiply_adds(model, (224, 224)) + head == pytest.approx(expected, rel=1e-3)


# Counted on the authors' dense backbones.
@pytest.mark.parametrize(('variant', 'expected'), [('m3', 29.5), ('m4', 50.4), ('m5', 99.7)])
def test_recnext_m_at_the_size_of_coco(variant, expected, monkeypatch):
    monkeypatch.setenv('MMLK_BACKEND', 'reference')
    with torch.device('meta'):
        model = RecNeXt(variant).eval()
    assert round(multiply_adds(model, (800, 1344)), 1) == expected


@pytest.mark.parametrize(('variant', 'expected'), [('a3', 29.7), ('a4', 51.0), ('a5', 100.8)])
def test_recnext_a_at_the_size_of_coco(variant, expected, monkeypatch):
    monkeypatch.setenv('MMLK_BACKEND', 'reference')
    with torch.device('meta'):
        model = RecNeXt(variant).eval()
    # In the last stage the authors multiply (q k^T) v whatever the size; at 13 x 21 tokens q (k^T v)
    # and its row of means cost less.
    channels, tokens = model.dims[-1], 13 * 21
    heads = model.stages[3].blocks[0].token_mixer.down[1].num_heads
    saved = channels * tokens * (2 * tokens - 2 * channels // heads - 1)
    saved *= len(model.stages[3].blocks) / 1e9
    assert round(multiply_adds(model, (800, 1344)) + saved, 1) == expected


@pytest.mark.parametrize('name', COUNTED)
def test_segmentor_has_the_parameters_and_multiply_adds_stated(name):
    from mmseg.registry import MODELS

    stated = metafile_models()[name.removesuffix('.py')]['Metadata']
    init_default_scope('mmseg')
    settings = Config.fromfile(mmlk.config_path(name)).model
    settings.backbone.pop('init_cfg', None)
    with torch.device('meta'):
        segmentor = revert_sync_batchnorm(MODELS.build(settings)).eval()
    parameters = sum(p.numel() for p in segmentor.parameters()) / 1e6
    assert parameters == pytest.approx(stated['Parameters'], rel=1e-3, abs=0.005)
    macs = multiply_adds(segmentor._forward, SIZES[name.split('_')[0]])
    assert macs == pytest.approx(stated['FLOPs'], rel=1e-3, abs=0.05)  # stated to 0.1


@pytest.mark.parametrize(
    'name, shape',
    [
        ('inceptionnext_a_in1k', (224, 224)),
        ('inceptionnext_b_384_in1k', (384, 384)),
        ('inceptionnext_a_in1k_mini', (64, 64)),
        ('fpn_recnext_m3_ade20k', (512, 512)),
        ('mask_rcnn_recnext_m3_coco', (800, 1280)),
    ],
)
def test_models_are_counted_at_the_size_of_their_pictures(name, shape):
    assert usual_shape(load_config(name)) == shape
