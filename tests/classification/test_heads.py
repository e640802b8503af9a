"""Class scores against recorded ones of the authors' classifiers, timm's, and closed forms."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from mmlk.backbones import RecNeXt
from mmlk.heads import HEADS, MlpHead, NormLinearHead, TwoBranchHead
from tests.cases import GOLDEN_OPERATOR, GOLDEN_TRAIN_MODE, TOLERANCE, assert_close
from tests.classification.models import RECORDS, classifier, published, recorded_logits
from tests.golden_weights import assert_matches, golden_input, load_golden, load_golden_weights

QUICK = (
    'inceptionnext/atto',
    'recnext/recnext_m0',
    'recnext/recnext_a0',
    'replknet/micro',
    'replknet/micro_xl',
    'unireplknet/micro',
)
PARAMETERS = {
    ('inceptionnext', 'atto'): 4_156_520,
    ('inceptionnext', 'tiny'): 28_055_680,
    ('inceptionnext', 'small'): 49_374_016,
    ('inceptionnext', 'base'): 86_672_136,
    ('slak', 'tiny'): 50_703_838,
    ('slak', 'small'): 91_131_820,
    ('slak', 'base'): 157_950_792,
    ('slak', 'tiny_31'): 49_581_838,
    ('slak', 'tiny_61'): 51_264_838,
    ('dcls_convnext', 'tiny'): 28_587_688,
    ('dcls_convnext', 'small'): 50_217_064,
    ('dcls_convnext', 'base'): 88_582_632,
    ('dcls_convnext', 'tiny_gauss'): 28_586_536,
    ('recnext', 'm0'): 2_832_420,
    ('recnext', 'm4'): 14_630_128,
    ('recnext', 'a5'): 26_433_020,
    ('recnext', 's'): 16_485_584,
    ('recnext', 'b_share_channel'): 19_845_712,
}


@pytest.mark.parametrize(
    'record',
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RECORDS],
)
@torch.no_grad()
def test_published_classifier_gives_its_scores_whole_and_folded(record):
    model = classifier(*RECORDS[record]).eval()
    model.load_state_dict(published(record), strict=True)
    for fold in (False, True):
        if fold:
            model.backbone.switch_to_deploy()
            model.head.switch_to_deploy()
        for shape, summary in recorded_logits(record):
            scores = model(golden_input(shape))
            assert_matches(f'folded {fold}', scores, summary, GOLDEN_OPERATOR)


@pytest.mark.parametrize(('family', 'arch'), PARAMETERS)
def test_parameters_are_those_that_the_authors_count(family, arch):
    with torch.device('meta'):
        model = classifier(family, arch)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[family, arch]


@pytest.mark.parametrize('record', RECORDS)
def test_head_has_the_published_keys_and_shapes(record):
    family, _ = RECORDS[record]
    with torch.device('meta'):
        model = classifier(*RECORDS[record])
    prefix = '' if issubclass(HEADS[family], NormLinearHead) else 'head.'
    want = {
        key.removeprefix(prefix): shape
        for key, shape, _, in_backbone in load_golden(record)['state_dict']
        if (in_backbone if 'dcls' in record else not in_backbone)
    }
    assert {key: list(value.shape) for key, value in model.head.state_dict().items()} == want


@pytest.mark.parametrize('arch', ['m0', 'a0'])
@torch.no_grad()
def test_branches_in_training_are_the_authors(arch):
    record = load_golden(f'recnext/recnext_{arch}')['train_mode_case']
    model = classifier('recnext', arch).train()
    model.load_state_dict(published(f'recnext/recnext_{arch}'), strict=True)
    maps = model.backbone(golden_input(record['input_shape']))
    labels, teacher = model.head.branches(maps)
    assert_matches('labels', labels, record['outputs']['logits_cls'], GOLDEN_TRAIN_MODE)
    assert_matches('teacher', teacher, record['outputs']['logits_dist'], GOLDEN_TRAIN_MODE)
    model.head.head.norm.reset_running_stats()
    model.head.head(model.head.pre_logits(maps))
    pooled = maps[-1].mean((2, 3)).double()
    assert_close('mean', model.head.head.norm.running_mean, 0.1 * pooled.mean(0), 1e-5)


@pytest.mark.parametrize('name', ['atto', pytest.param('tiny', marks=pytest.mark.slow)])
@torch.no_grad()
def test_same_scores_as_timm(name):
    timm = pytest.importorskip('timm')
    theirs = load_golden_weights(timm.create_model(f'inception_next_{name}'))
    ours = classifier('inceptionnext', name)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = golden_input((2, 3, 75, 64))
    for training in (False, True):
        want, got = theirs.train(training)(x), ours.train(training)(x)
        assert_close(f'training {training}', got, want, 10 * TOLERANCE[torch.float32][0])


def double(head):
    return {key: value.double() for key, value in head.state_dict().items()}


def closed_form(head, x):
    """The head in float64, written out."""
    state, pooled = double(head), x.double().mean((2, 3))

    def normed(y, name):
        variance, mean = torch.var_mean(y, 1, keepdim=True, correction=0)
        y = (y - mean) / torch.sqrt(variance + 1e-6)
        return y * state[f'{name}.weight'] + state[f'{name}.bias']

    def linear(y, name):
        return y @ state[f'{name}.weight'].T + state[f'{name}.bias']

    if isinstance(head, MlpHead):
        hidden = linear(pooled, 'fc1')
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        return linear(normed(hidden, 'norm'), 'fc2')
    if isinstance(head, NormLinearHead):
        return linear(normed(pooled, 'norm'), 'head')
    branches = []
    for name in ('head', 'head_dist'):
        scale = state[f'{name}.norm.weight'] / torch.sqrt(state[f'{name}.norm.running_var'] + 1e-5)
        y = (pooled - state[f'{name}.norm.running_mean']) * scale + state[f'{name}.norm.bias']
        branches.append(linear(y, f'{name}.linear'))
    return (branches[0] + branches[1]) / 2


@pytest.mark.parametrize('kind', [MlpHead, NormLinearHead, TwoBranchHead])
@torch.no_grad()
def test_head_computes_its_closed_form_whole_and_folded(kind):
    head = load_golden_weights(kind(24, 7)).eval()
    maps = [golden_input((3, 12, 10, 8)), golden_input((3, 24, 5, 4), seed=2)]
    want = closed_form(head, maps[-1])
    assert_close('map', head(maps[-1]), want, TOLERANCE[torch.float32][0])
    assert_close('outputs of a backbone', head(maps), want, TOLERANCE[torch.float32][0])
    assert head.switch_to_deploy() is head.switch_to_deploy()
    assert_close('folded', head(maps), want, TOLERANCE[torch.float32][0])
    assert not any(isinstance(module, torch.nn.BatchNorm1d) for module in head.modules())


def test_folded_head_has_no_branches_left():
    head = TwoBranchHead(8, 3).switch_to_deploy()
    with pytest.raises(RuntimeError, match='folded'):
        head.branches(torch.zeros(2, 8, 2, 2))


@pytest.mark.parametrize('kind', [MlpHead, NormLinearHead, TwoBranchHead])
def test_initial_weights_are_truncated_normal_and_biases_zero(kind):
    head = kind(256, 1000)
    for name, parameter in head.named_parameters():
        if name.endswith('bias'):
            assert not parameter.any(), name
        elif parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name


def test_dropout_is_before_the_last_layer():
    head = MlpHead(16, 5, dropout=0.5).train()
    with torch.no_grad():
        features = head.pre_logits(torch.ones(64, 16, 2, 2))
    assert 0.4 < (features == 0).float().mean() < 0.6


@pytest.mark.parametrize('kind', [MlpHead, NormLinearHead, TwoBranchHead])
@pytest.mark.parametrize('numbers', [(0, 5), (8, 0), (8, -1)])
def test_numbers_that_are_not_positive_are_refused(kind, numbers):
    with pytest.raises(ValueError, match='must be positive'):
        kind(*numbers)


def test_loss_and_predictions_are_those_of_the_scores():
    from mmpretrain.structures import DataSample

    model = classifier('recnext', dict(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64)), num_classes=5)
    x, labels = golden_input((4, 3, 64, 64)), [3, 0, 4, 4]
    samples = [DataSample().set_gt_label(label) for label in labels]
    model.eval()
    with torch.no_grad():
        scores = model(x)
        loss = model(x, samples, mode='loss')['loss']
        predictions = model(x, samples, mode='predict')
    assert_close('loss', loss, F.cross_entropy(scores, torch.tensor(labels)), 1e-6)
    for score, sample in zip(scores, predictions, strict=True):
        assert_close('prediction', sample.pred_score, score.softmax(0), 1e-6)
        assert sample.pred_label.item() == score.argmax()


def test_nothing_is_left_unused_in_training():
    for family in ('inceptionnext', 'slak', 'dcls_convnext', 'recnext'):
        arch = dict(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128))
        model = classifier(family, arch, num_classes=3).train()
        model(golden_input((2, 3, 64, 64))).sum().backward()
        unused = [name for name, p in model.named_parameters() if p.grad is None]
        assert unused == [], 'distributed training would wait for these for ever'


def test_stride8_networks_have_maps_of_stride_64():
    with torch.device('meta'):
        model = classifier('recnext', 't')
        maps = model.backbone(torch.empty(1, 3, 224, 224))
    assert isinstance(model.backbone, RecNeXt) and [tuple(y.shape) for y in maps] == [
        (1, 512, 4, 4)
    ]


def test_every_head_is_found_by_its_name_before_mmpretrain_is_imported():
    program = (
        'from mmlk.registry import MODELS; import mmlk.registry as r\n'
        'late = [name for name, at in r._LATE.items() if at == "mmlk.classification"]\n'
        'found = {name: MODELS.get(f"mmlk.{name}") for name in late}\n'
        'import mmlk.classification as c; assert set(c.__all__) == set(found)\n'
        'assert all(getattr(c, name) is kind for name, kind in found.items())'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
