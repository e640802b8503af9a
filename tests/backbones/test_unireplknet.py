"""UniRepLKNet against recorded outputs and gradients of the authors' networks."""

import hashlib

import pytest
import torch
from torch import nn

from mmlk.backbones import MetaNeXt, UniRepLKNet
from mmlk.models.classifier import Classifier
from mmlk.ops import DepthwiseConv2d
from tests.cases import (
    GOLDEN_NETWORK,
    GOLDEN_TRAIN_MODE,
    MICRO_ARCHS,
    TOLERANCE,
    assert_close,
    away,
)
from tests.classification.models import published
from tests.golden_weights import assert_matches, golden_input, load_golden, load_golden_weights

RECORD = load_golden('unireplknet/micro')
ARCH = RECORD['config']
PUBLISHED = load_golden('unireplknet/published')['variants']
# Millions of parameters as the authors print them, which are those of the folded network.
MILLIONS = dict(a=4.4, f=6.2, p=10.7, n=18.3, t=31, s=56, b=98, l=218, xl=386)


def build(kind=UniRepLKNet, **options):
    arch = ARCH if kind is UniRepLKNet else UniRepLKNet.parts(ARCH)
    return load_golden_weights(kind(arch, **options)).eval()


def test_keys_and_shapes_are_the_authors():
    want = {key: shape for key, shape, _, headless in RECORD['state_dict'] if headless}
    want.update({key: shape for key, shape, _ in RECORD['dense_only_state_dict']})
    for kind in (UniRepLKNet, MetaNeXt):
        model = build(kind)
        assert {key: list(v.shape) for key, v in model.state_dict().items()} == want
        assert sum(p.numel() for p in model.parameters()) == RECORD['params']['dense']


@pytest.mark.parametrize('arch', UniRepLKNet.arch_settings)
def test_published_variants_have_the_authors_keys_shapes_and_parameters(arch, monkeypatch):
    monkeypatch.setattr(nn.init, 'trunc_normal_', lambda tensor, **_: tensor)  # slow without memory
    record = PUBLISHED[arch]
    with torch.device('meta'):
        model = UniRepLKNet(arch, out_indices=(3,), output_norm=False)
        whole = Classifier(model)
    state = model.state_dict()
    lines = sorted(f'{key} {list(value.shape)}' for key, value in state.items())
    assert hashlib.sha256('\n'.join(lines).encode()).hexdigest() == record['keys_sha256']
    assert sum(p.numel() for p in model.parameters()) == record['headless']
    assert sum(p.numel() for p in whole.parameters()) == record['classifier']
    folded = record['classifier_merged']
    assert abs(folded / 1e6 - MILLIONS[arch]) < (0.1 if folded < 20e6 else 1)
    if arch in ('a', 't'):
        assert sum(p.numel() for p in whole.switch_to_deploy().parameters()) == folded


@pytest.mark.parametrize('kind', [UniRepLKNet, MetaNeXt])
@torch.no_grad()
def test_stages_match_the_authors_raw_normed_and_folded(kind, monkeypatch):
    raw, dense = build(kind, output_norm=False), build(kind)
    for form in ('whole', 'folded'):
        for run, backend in zip(RECORD['runs'], ('', 'reference'), strict=True):
            monkeypatch.setenv('MMLK_BACKEND', backend)  # loops are compiled for every size
            x = golden_input(run['input_shape'], run['input_seed'])
            for name, model in (('stages', raw), ('dense_outputs', dense)):
                for i, y in enumerate(model(x)):
                    assert_matches(f'{form} {name} {i}', y, run[name][i], GOLDEN_NETWORK)
        raw.switch_to_deploy(), dense.switch_to_deploy()
    assert all(type(mixer) is DepthwiseConv2d for mixer in raw.token_mixers().values())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in raw.modules())
    assert not any(key.endswith(('dwconv.gamma', '.beta')) for key in raw.state_dict())


def test_a_training_step_is_the_authors():
    case, model = RECORD['train_mode'], build(norm_cfg=dict(type='SyncBN')).train()
    x = golden_input(case['input_shape']).requires_grad_()
    outputs = model(x)
    sum((y * golden_input(y.shape, seed=1)).sum() for y in outputs).backward()
    for i, y in enumerate(outputs):
        assert_matches(f'output {i}', y, case['dense_outputs'][i], GOLDEN_TRAIN_MODE)
    assert_matches('input gradient', x.grad, case['grad_input'], GOLDEN_TRAIN_MODE)
    # The bias of a layer in front of a batch norm has no gradient but the rounding of sums.
    floor = 5e-2 * max(each['std'] for each in case['grad_params'].values())
    for key, summary in case['grad_params'].items():
        assert_matches(key, model.get_parameter(key).grad, summary, GOLDEN_TRAIN_MODE, floor)
    for key, summary in case['buffers'].items():
        assert_matches(key, model.get_buffer(key), summary, GOLDEN_TRAIN_MODE)


@torch.no_grad()
def test_classifier_file_gives_the_authors_scores(tmp_path, monkeypatch):
    monkeypatch.setenv('MMLK_BACKEND', 'reference')
    torch.save({'model': published('unireplknet/micro')}, tmp_path / 'a.pth')
    model = Classifier(UniRepLKNet(ARCH, out_indices=(3,), output_norm=False)).eval()
    model.load_pretrained(tmp_path / 'a.pth')
    for _ in range(2):
        for run in RECORD['runs']:
            scores = model(golden_input(run['input_shape'], run['input_seed']))
            assert_matches('scores', scores, run['logits'], GOLDEN_NETWORK)
        model.switch_to_deploy()


def test_files_of_another_variant_or_form_are_refused(tmp_path):
    file = tmp_path / 'a.pth'
    torch.save(published('unireplknet/micro'), file)
    assert UniRepLKNet(ARCH).load_pretrained(file).covered
    other = UniRepLKNet(dict(ARCH, kernel_sizes=((3,), (3,), (13,), (5,))))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError, match='kernel sizes 3; 3; 13, 3; 5'):
        other.load_pretrained(file)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    torch.save(build().switch_to_deploy().state_dict(), file)
    with pytest.raises(ValueError, match='does not cover'):
        UniRepLKNet(ARCH).load_pretrained(file)


@torch.no_grad()
@pytest.mark.parametrize('mlp', ['ConvMlp', 'ConvNormMlp', 'GRNMlp'])
@pytest.mark.parametrize('block', ['InceptionNeXt', 'ConvNeXt', 'RecNeXt', 'UniRepLKNet'])
def test_its_parts_fit_every_template(block, mlp, monkeypatch):
    """The mixer and the feed-forward layers in blocks of others, others' in its block; all fold."""
    monkeypatch.setenv('MMLK_BACKEND', 'reference')
    torch.manual_seed(0)
    model = away(
        MetaNeXt(
            dict(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128)),
            block=dict(type=block),
            stem=dict(type='UniRepLKNetStem'),
            token_mixer=dict(type='mmlk.DilatedReparamConv2d', kernel_size=13),
            channel_mixer=dict(type=f'mmlk.{mlp}', ratio=2),
            norm_cfg=dict(type='BN'),
            layer_scale_init=0.5,
            output_norm=False,
        )
    ).eval()
    x = golden_input((2, 3, 64, 64))
    want = model(x)
    for i, (y, expected) in enumerate(zip(model.switch_to_deploy()(x), want, strict=True)):
        assert_close(f'stage {i}', y, expected, 50 * TOLERANCE[torch.float32][0])
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize(
    ('kernel_sizes', 'message'),
    [
        (((3,), (9,), (13,)), 'kernel_sizes .* must hold one or more sizes for each of 4 stages'),
        (((3,), (), (13,), (13,)), 'must hold one or more sizes for each of 4 stages'),
        (((3,), (19,), (13,), (13,)), 'kernel_size 19 is not one of 5, 7, 9, 11, 13, 15, 17'),
        (((4,), (9,), (13,), (13,)), r'kernel_size \(4, 4\) must be odd'),
    ],
)
def test_bad_kernel_sizes_are_named(kernel_sizes, message):
    with pytest.raises(ValueError, match=message):
        UniRepLKNet(dict(MICRO_ARCHS['UniRepLKNet'], kernel_sizes=kernel_sizes))
