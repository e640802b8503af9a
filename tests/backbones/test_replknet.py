"""RepLKNet against recorded outputs and gradients of the authors' networks."""

import hashlib
import re

import pytest
import torch

from mmlk.backbones import RepLKNet
from mmlk.models.classifier import Classifier
from mmlk.ops import LargeKernelDWConv2d
from tests.cases import GOLDEN_NETWORK, GOLDEN_TRAIN_MODE, MICRO_ARCHS
from tests.classification.models import published
from tests.golden_weights import assert_matches, golden_input, load_golden, load_golden_weights

VARIANTS = ('micro', 'micro_xl')
PUBLISHED = load_golden('replknet/published')['variants']
MILLIONS = {'31b': 79, '31l': 172, 'xl': 335}  # of parameters, as the authors print them


def recorded_arch(record):
    config = record['config']
    return dict(
        depths=config['layers'],
        dims=config['channels'],
        kernel_sizes=config['large_kernel_sizes'],
        small_kernel_size=config['small_kernel'],
        mixer_ratio=config['dw_ratio'],
    )


def authors_name(key):
    """XL's dense networks have the norm of an output inside its stage."""
    return re.sub(r'^norm(\d)\.', r'stages.\1.norm.', key)


def build(record, **options):
    options.setdefault('output_norm', record['config']['norm_intermediate_features'])
    model = RepLKNet(recorded_arch(record), **options)
    return load_golden_weights(model, rename=authors_name).eval()


@pytest.mark.parametrize('variant', VARIANTS)
def test_keys_and_shapes_are_the_authors(variant):
    record = load_golden(f'replknet/{variant}')
    want = {key: shape for key, shape, _, headless in record['state_dict'] if headless}
    want.update({key: shape for key, shape, _ in record['dense_only_state_dict']})
    model = build(record)
    state = model.state_dict()
    assert {authors_name(key): list(value.shape) for key, value in state.items()} == want
    assert sum(p.numel() for p in model.parameters()) == record['params']['dense']


@pytest.mark.parametrize('arch', RepLKNet.arch_settings)
def test_published_variants_have_the_authors_keys_shapes_and_parameters(arch):
    record = PUBLISHED[arch]
    with torch.device('meta'):
        model = RepLKNet(arch, out_indices=(3,))
        whole = Classifier(model)
    state = model.state_dict()
    lines = sorted(f'{key} {list(value.shape)}' for key, value in state.items())
    assert hashlib.sha256('\n'.join(lines).encode()).hexdigest() == record['keys_sha256']
    assert sum(p.numel() for p in model.parameters()) == record['headless']
    count = sum(p.numel() for p in whole.parameters())
    assert count == record['classifier']
    assert abs(count / 1e6 - MILLIONS[arch]) < 1


@pytest.mark.parametrize('variant', VARIANTS)
@torch.no_grad()
def test_stages_match_the_authors_raw_normed_and_folded(variant, monkeypatch):
    record = load_golden(f'replknet/{variant}')
    raw = build(record, output_norm=False)
    dense = build(record, norm_cfg=dict(type='SyncBN'))
    for form in ('whole', 'folded'):
        for run, backend in zip(record['runs'], ('', 'reference'), strict=True):
            monkeypatch.setenv('MMLK_BACKEND', backend)  # loops are compiled for every size
            x = golden_input(run['input_shape'], run['input_seed'])
            for name, model in (('stages', raw), ('dense_outputs', dense)):
                for i, y in enumerate(model(x)):
                    assert_matches(f'{form} {name} {i}', y, run[name][i], GOLDEN_NETWORK)
        raw.switch_to_deploy(), dense.switch_to_deploy()
    kernels = [m for m in raw.modules() if isinstance(m, LargeKernelDWConv2d)]
    assert [dict(m.named_children()).keys() for m in kernels] == [{'lkb_reparam'}] * 5
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in raw.modules())


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_training_step_is_the_authors(variant):
    record = load_golden(f'replknet/{variant}')
    case, model = record['train_mode'], build(record).train()
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
        assert_matches(
            key,
            model.get_buffer(re.sub(r'stages\.(\d)\.norm', r'norm\1', key)),
            summary,
            GOLDEN_TRAIN_MODE,
        )


@pytest.mark.parametrize('variant', VARIANTS)
@torch.no_grad()
def test_classifier_file_gives_the_authors_scores(variant, tmp_path, monkeypatch):
    monkeypatch.setenv('MMLK_BACKEND', 'reference')
    record = load_golden(f'replknet/{variant}')
    torch.save({'model': published(f'replknet/{variant}')}, tmp_path / 'a.pth')
    backbone = RepLKNet(recorded_arch(record), out_indices=(3,))
    model = Classifier(backbone).eval()
    model.load_pretrained(tmp_path / 'a.pth')
    for _ in range(2):
        for run in record['runs']:
            scores = model(golden_input(run['input_shape'], run['input_seed']))
            assert_matches('scores', scores, run['logits'], GOLDEN_NETWORK)
        model.switch_to_deploy()


def test_files_load_exactly_or_are_refused(tmp_path):
    """A classifier's, XL's dense one, and those of another variant, folded, or cut."""
    record = load_golden('replknet/micro_xl')
    arch, whole = recorded_arch(record), build(record)
    file = tmp_path / 'a.pth'
    state = {f'backbone.{authors_name(key)}': v for key, v in whole.state_dict().items()}
    torch.save({'state_dict': {**state, 'decode_head.conv_seg.bias': torch.zeros(2)}}, file)
    model = RepLKNet(arch, output_norm=True)
    report = model.load_pretrained(file)
    assert not report.fresh and not report.unexpected
    for key, value in model.state_dict().items():
        assert torch.equal(value, whole.state_dict()[key]), key
    with pytest.raises(
        ValueError, match='kernel sizes 15, 13, 13, 7 with no kernel beside them on 1.5'
    ):
        RepLKNet(MICRO_ARCHS['RepLKNet']).load_pretrained(file)
    with pytest.raises(ValueError, match=r'RepLKNet of depths .* the module is RepLKNet 31b'):
        with torch.device('meta'):
            published_size = RepLKNet('31b')
        published_size.load_pretrained(file)
    torch.save(build(record).switch_to_deploy().state_dict(), file)
    with pytest.raises(ValueError, match='does not cover'):
        RepLKNet(arch).load_pretrained(file)


def test_pairs_of_blocks_share_a_rate_and_a_location():
    with torch.device('meta'):
        model = RepLKNet('31b', drop_path_rate=0.5)
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.5 * (i // 2) / 23 for i in range(48)])
    assert model.layer_location('stem.3.bn.weight') == ('stem', 0, 0)
    assert model.layer_location('transitions.0.1.conv.weight') == ('downsample', 1, 0)
    assert model.layer_location('stages.2.blocks.34.pw1.conv.weight') == ('block', 2, 17)
    assert model.layer_location('stages.2.blocks.35.pw1.conv.weight') == ('block', 2, 17)


MICRO = MICRO_ARCHS['RepLKNet']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch=dict(MICRO, kernel_sizes=(15, 13, 13))), 'kernel_sizes .* differ in length'),
        (
            dict(arch=dict(MICRO, kernel_sizes=(12, 13, 13, 7))),
            'kernel size 12 must be an odd number',
        ),
        (dict(arch=dict(MICRO, small_kernel_size=4)), 'kernel size 4 must be an odd number'),
        (dict(arch=MICRO, layer_scale_init=1e-6), 'layer_scale_init 1e-06 must be None'),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RepLKNet(**options)
