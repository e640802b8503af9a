"""Learning from a teacher: the loss, what is trained and saved, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmlk.checkpoints.errors import UnusableCheckpoint
from mmlk.cli.checkpoint import check_weights
from tests.cases import assert_close
from tests.golden_weights import golden_input

ARCH = dict(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64))
TEACHER = dict(type='TimmClassifier', model_name='inception_next_atto', num_classes=5)


@pytest.fixture(scope='module')
def teacher_file(tmp_path_factory):
    """A published file: timm's names inside a trainer's wrapping."""
    timm = pytest.importorskip('timm')
    torch.manual_seed(3)
    network = timm.create_model('inception_next_atto', num_classes=5).eval()
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.save({'model': network.state_dict()}, path)
    return path, network


def build(checkpoint, head='mmlk.TwoBranchClsHead', **changes):
    from mmpretrain.registry import MODELS

    settings = dict(
        type='mmlk.DistilledClassifier',
        teacher=TEACHER,
        teacher_checkpoint=checkpoint and str(checkpoint),
        backbone=dict(type='mmlk.RecNeXt', arch=ARCH, out_indices=(3,)),
        head=dict(
            type=head,
            in_channels=64,
            num_classes=5,
            loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        ),
    )
    settings.update(changes)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(settings)


def batch():
    from mmpretrain.structures import DataSample

    labels = torch.tensor([3, 0, 4, 1])
    return golden_input((4, 3, 64, 64)), labels, [DataSample().set_gt_label(n) for n in labels]


def test_loss_is_deits_hard_distillation(teacher_file):
    path, network = teacher_file
    model = build(path, alpha=0.3)
    model.init_weights()
    inputs, labels, samples = batch()
    losses = model.train()(inputs, samples, mode='loss')
    # Written out as DeiT's paper has it, on the branches of the same forward pass.
    model.load_state_dict(model.state_dict())
    pooled = model.backbone(inputs)[-1].mean((2, 3))
    first, second = model.head.head(pooled), model.head.head_dist(pooled)
    smooth = F.one_hot(labels, 5) * 0.9 + 0.1 / 5
    with torch.no_grad():
        chosen = network(inputs).argmax(1)
    assert_close(
        'labels', losses['loss_labels'], 0.7 * -(smooth * first.log_softmax(1)).sum(1).mean(), 1e-5
    )
    assert_close('teacher', losses['loss_teacher'], 0.3 * F.cross_entropy(second, chosen), 1e-5)
    assert set(losses) == {'loss_labels', 'loss_teacher'}


def test_teacher_is_neither_trained_nor_saved(teacher_file):
    path, network = teacher_file
    model = build(path)
    keys = set(model.state_dict())
    model.init_weights()
    assert set(model.state_dict()) == keys
    names = [name for name, _ in model.named_parameters()]
    assert not any('teacher' in name for name in names)
    (teacher,) = model._teacher
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    inputs, _, samples = batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sum(model.train()(inputs, samples, mode='loss').values()).backward()
    optimizer.step()
    assert not teacher.training
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
        assert torch.equal(value, network.state_dict()[key]), key
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []


def test_both_branches_are_what_a_test_averages(teacher_file):
    model = build(teacher_file[0]).eval()
    inputs, _, samples = batch()
    with torch.no_grad():
        scores = model(inputs)
        first, second = model.head.branches(model.backbone(inputs))
    assert_close('scores', scores, (first + second) / 2, 1e-6)
    assert not model._teacher, 'a test needs no teacher'


def test_without_a_teacher_nothing_starts(teacher_file):
    with pytest.raises(ValueError, match='teacher_checkpoint is missing.*ImageClassifier'):
        build(None)
    with pytest.raises(UnusableCheckpoint, match='teacher_checkpoint: .*gone.pth'):
        build(teacher_file[0].with_name('gone.pth')).init_weights()
    inputs, _, samples = batch()
    with pytest.raises(RuntimeError, match='no teacher; call init_weights'):
        build(teacher_file[0])(inputs, samples, mode='loss')


def drop(state):
    del state['stem.0.bias']
    return '1 missing, such as model.stem.0.bias. Name'


def add(state):
    state.update({f'more.{number}': torch.ones(1) for number in range(99)})
    return '99 without a place, such as model.more.0. Name'


def grow(state):
    state['stem.0.bias'] = torch.ones(99)
    return '1 tensors of another shape, first size mismatch for model.stem.0.bias: '


@pytest.mark.parametrize('change', [drop, add, grow])
def test_weights_of_another_teacher_are_refused_in_a_line(teacher_file, tmp_path, change):
    state = dict(teacher_file[1].state_dict())
    what = change(state)
    torch.save(state, tmp_path / 'other.pth')
    with pytest.raises(
        UnusableCheckpoint, match=f'other.pth does not fit the teacher.*{what}'
    ) as error:
        build(tmp_path / 'other.pth').init_weights()
    assert '\n' not in str(error.value) and len(str(error.value)) < 700


def test_a_teacher_of_other_classes_is_refused(teacher_file):
    model = build(teacher_file[0]).train()
    model.init_weights()
    model.head.num_classes += 1
    inputs, _, samples = batch()
    with pytest.raises(
        UnusableCheckpoint, match='teacher tells 5 classes apart .*num_classes is 6'
    ):
        model(inputs, samples, mode='loss')


@pytest.mark.parametrize('alpha', [-0.1, 1.5, math.nan])
def test_weight_of_the_teacher_is_a_share(teacher_file, alpha):
    with pytest.raises(ValueError, match='alpha .* must be within 0 to 1'):
        build(teacher_file[0], alpha=alpha)


def test_head_without_branches_is_refused(teacher_file):
    with pytest.raises(ValueError, match='MlpClsHead has no branches; use mmlk.TwoBranchClsHead'):
        build(teacher_file[0], head='mmlk.MlpClsHead')


@pytest.mark.parametrize(
    'teacher, message',
    [
        (None, 'model.teacher_checkpoint is missing.*without a teacher'),
        ('absent.pth', 'model.teacher_checkpoint: checkpoint absent.pth'),
    ],
)
def test_a_teacher_without_weights_is_told_before_anything_is_built(teacher, message):
    model = dict(type='mmlk.DistilledClassifier', teacher_checkpoint=teacher)
    with pytest.raises(ValueError, match=message):
        check_weights(Config(dict(model=model)))
