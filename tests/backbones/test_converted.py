"""``mmlk.Converted``: backbones of other packages, converted, through configs and training."""

import copy
import pickle

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

import mmlk
from mmlk.backbones.converted import build_converted
from mmlk.cli.complexity import build_model, measure
from mmlk.cli.config import drop_pretrained, load_config
from mmlk.cli.fit import check_fit
from mmlk.cli.hooks import bring_hooks
from mmlk.ops import DCLSConv2d
from mmlk.registry import MODELS
from tests.cases import assert_close, away
from tests.docs.pages import BLOCKS
from tests.engine.dcls_models import make_runner

SCOPES = ('mmseg', 'mmdet', 'mmpretrain')
RULES = {'conv==3x3 in layer*': dict(type='mmlk.DCLSConv2d', kernel_count=9, dilated_kernel_size=7)}
FEW = {'conv==3x3 in layer*': dict(type='mmlk.DCLSConv2d', kernel_count=4, dilated_kernel_size=7)}


def resnet(scope='mmpretrain', **options):
    widths = dict(base_channels=8, stem_channels=8)
    return dict(type=f'{scope}.ResNet', depth=18, **widths, **options)


def converted(network=None, rules=RULES, **options):
    torch.manual_seed(0)
    network = resnet() if network is None else network
    return MODELS.build(dict(type='mmlk.Converted', network=network, rules=rules, **options))


def plain(scope='mmpretrain', **options):
    torch.manual_seed(1)
    return away(MODELS.build(resnet(scope, **options)))


def evaluated(model, x):
    model.eval()  # of which the ResNets return nothing
    with torch.no_grad():
        return model(x)


def images(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def weights(tmp_path):
    """A file with weights of a ResNet."""
    file = tmp_path / 'resnet.pth'
    torch.save(dict(state_dict=plain().state_dict()), file)
    return str(file)


def pretrained(checkpoint, **options):
    return dict(type='Pretrained', checkpoint=checkpoint, **options)


@pytest.mark.parametrize('scope', SCOPES)
def test_resnets_of_all_packages(scope, weights):
    model = converted(resnet(scope, init_cfg=pretrained(weights)), share_positions=True)
    source = MODELS.build(resnet(scope))
    assert isinstance(model, type(source)) and type(model).__name__ == 'ConvertedResNet'
    by_hand = mmlk.convert(source, RULES, share_positions=True).model
    assert list(model.state_dict()) == list(by_hand.state_dict())
    model.init_weights()
    source.load_state_dict(torch.load(weights, weights_only=True)['state_dict'])
    x = images()
    for got, want in zip(evaluated(model, x), evaluated(source, x), strict=True):
        assert_close('map', got, want, 2e-6)


@pytest.mark.parametrize('scope', SCOPES)
def test_a_name_without_scope_is_found_in_the_default_one(scope):
    with DefaultScope.overwrite_default_scope(scope):
        model = converted(dict(resnet(), type='ResNet'))
    assert type(model).__mro__[2].__module__.startswith(scope)
    model.init_weights()


def test_few_elements_begin_on_the_largest_taps_of_the_pretrained_kernels(weights):
    model = converted(resnet(init_cfg=pretrained(weights)), FEW)
    before = model.layer2[0].conv1.P.clone()
    model.init_weights()
    layer, source = model.layer2[0].conv1, plain().layer2[0].conv1
    want = source.weight.detach().abs().flatten(2).topk(4).values
    assert_close('weights', layer.weight.abs().sort(2).values, want.sort(2).values, 1e-6)
    assert torch.equal(layer.P, layer.P.round()) and not torch.equal(layer.P, before)


def test_from_scratch_the_network_begins_as_its_own_rules_say_and_new_layers_as_theirs():
    model = converted(rules=FEW, carry_weights=False)
    model.init_weights()
    layer = model.layer3[1].conv1
    assert 0.4 < layer.P.std() < 0.6
    assert layer.weight.abs().max() <= (1 / (layer.weight[0].numel())) ** 0.5
    assert (model.layer3[1].bn2.weight == 0).all(), 'zero_init_residual of the network'
    before = model.state_dict()['layer1.0.conv1.weight'].clone()
    model.init_weights()
    assert torch.equal(before, model.state_dict()['layer1.0.conv1.weight'])


def test_weights_of_a_converted_classifier_become_those_of_a_backbone(weights, tmp_path):
    model = away(converted(share_positions=True))
    whole = nn.ModuleDict(dict(backbone=model, head=nn.Linear(2, 2)))
    file = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict=whole.state_dict()), file)
    other = converted(
        resnet(init_cfg=pretrained(weights)),
        share_positions=True,
        init_cfg=pretrained(str(file), prefix='backbone.'),
    )
    other.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_frozen_stages_and_modes_are_the_networks_own():
    model = converted(resnet('mmdet', frozen_stages=2, norm_eval=True))
    model.train()
    frozen = {key.split('.')[0] for key, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {'conv1', 'bn1', 'layer1', 'layer2'}
    assert not model.layer2[0].conv1.training and model.layer3[0].conv1.training
    assert not model.layer4[0].bn1.training


def test_copies_and_pickles():
    model, x = away(converted(share_positions=True)), images(32)
    want = evaluated(model, x)[0]
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(each) is type(model) and torch.equal(evaluated(each, x)[0], want)
        assert each.layer2[1].conv1.P is each.layer2[0].conv2.P
        assert each.layer2[1].conv1.P is not model.layer2[1].conv1.P


def test_networks_of_this_package():
    arch = dict(depths=(1, 1, 1, 1), dims=(16, 24, 32, 40))
    network = dict(type='mmlk.InceptionNeXt', arch=arch)
    rules = {'depthwise==9x1': dict(type='mmlk.DCLSConv2d', kernel_count=9, dilated_kernel_size=11)}
    model = converted(network, rules)
    model.init_weights()
    assert sum(type(each) is DCLSConv2d for each in model.modules()) == 4
    assert len(evaluated(model, images())) == 4


class Classifier(BaseModel):
    """Mean over the last map of a converted ResNet, linear head."""

    def __init__(self):
        super().__init__()
        self.backbone = converted(rules=FEW, share_positions=True, carry_weights=False)
        self.head = nn.Linear(64, 4)

    def forward(self, inputs, labels, mode='loss'):
        scores = self.head(self.backbone(inputs)[-1].mean((2, 3)))
        return dict(loss=nn.functional.cross_entropy(scores, labels)) if mode == 'loss' else scores


OPTIMIZER = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(
        bias_decay_mult=0.0,
        norm_decay_mult=0.0,
        custom_keys={'.P': dict(lr_mult=5.0, decay_mult=0.0)},
    ),
)


def test_positions_learn_faster_and_do_not_decay():
    model = Classifier()
    groups = build_optim_wrapper(model, OPTIMIZER).optimizer.param_groups
    found = {
        id(p): (group['lr'], group['weight_decay']) for group in groups for p in group['params']
    }
    positions = [p for key, p in model.named_parameters() if key.endswith('.P')]
    assert len(positions) == 7, 'one for each stage, and for each step between widths'
    for key, parameter in model.named_parameters():
        rate, decay = found[id(parameter)]
        assert rate == (5e-3 if key.endswith('.P') else 1e-3)
        assert decay == (0.05 if key.endswith('weight') and parameter.ndim > 1 else 0.0), key


@pytest.mark.parametrize('clamped', (False, True))
def test_positions_stay_in_the_window_in_training(clamped, tmp_path):
    wrapper = copy.deepcopy(OPTIMIZER)
    wrapper['paramwise_cfg']['custom_keys']['.P']['lr_mult'] = 3000.0
    runner = make_runner(
        tmp_path,
        model=Classifier(),
        optim_wrapper=wrapper,
        hooks=[dict(type='mmlk.DCLSClampHook')] if clamped else [],
    )
    runner.train()
    layers = [each for each in runner.model.modules() if isinstance(each, DCLSConv2d)]
    farthest = max(float(each.P.detach().abs().max()) for each in layers)
    assert farthest == 3 if clamped else farthest > 3
    resumed = Classifier()
    resumed.load_state_dict(
        torch.load(tmp_path / 'iter_4.pth', weights_only=False)['state_dict'], strict=True
    )
    assert torch.equal(resumed.backbone.layer1[0].conv1.P, runner.model.backbone.layer1[0].conv1.P)


def test_the_train_tool_brings_the_clamp_and_building_alone_loads_nothing():
    backbone = dict(
        type='mmlk.Converted', network=resnet(init_cfg=pretrained('nowhere.pth')), rules=FEW
    )
    config = Config(dict(model=dict(backbone=backbone)))
    notes = bring_hooks(config)
    assert config.default_hooks.dcls_clamp.type == 'mmlk.DCLSClampHook'
    assert any('DCLSConv2d needs it' in note for note in notes)
    check_fit(config)
    assert 'init_cfg' not in drop_pretrained(config.model).backbone.network
    MODELS.build(config.model.backbone)


def test_costs_are_those_of_the_window():
    found = []
    for backbone in (
        resnet(),
        dict(type='mmlk.Converted', network=resnet(), rules=FEW, share_positions=True),
    ):
        head = dict(type='LinearClsHead', num_classes=4, in_channels=64)
        model = dict(
            type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling')
        )
        config = Config(dict(model=dict(model, head=head), default_scope='mmpretrain'))
        found.append(measure(build_model(config), (224, 224)))
    plain, made = (next(part for part in parts if part.name == 'backbone') for parts in found)
    # Pairs of channels of the layers, by stages; the first layer of a later stage has half as many.
    pairs = [(8 * 2**stage) ** 2 for stage in range(4)]
    layers = [[pairs[0]] * 4] + [[each // 2] + [each] * 3 for each in pairs[1:]]
    products = sum(sum(each) * (56 // 2**stage) ** 2 for stage, each in enumerate(layers))
    assert made.macs - plain.macs == (7 * 7 - 3 * 3) * products
    positions = 2 * 4 * sum(sum(set(each)) for each in layers)
    assert made.parameters - plain.parameters == (4 - 9) * sum(map(sum, layers)) + positions


def test_the_printed_config_has_the_parameters_of_the_experiment(tmp_path, monkeypatch):
    (block,) = (each for each in BLOCKS['docs/surgery.md'] if 'mmlk.Converted' in each.text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'block.py').write_text(block.text)
    config = load_config('block.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config.model)
        groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    assert sum(each.numel() for each in model.parameters()) == 24_008_744
    assert sum(type(each) is DCLSConv2d for each in model.modules()) == 16
    found = {
        id(p): (group['lr'], group['weight_decay']) for group in groups for p in group['params']
    }
    for key, parameter in model.named_parameters():
        if key.endswith('.P'):
            assert found[id(parameter)] == (5 * 0.008, 0.0)


class _Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)


BAD = {
    'no module of MMEngine': (dict(network=dict(type=_Bare)), 'is no mmengine.model.BaseModule'),
    'twice': (
        dict(network=dict(type='mmlk.Converted', network=resnet(), rules=FEW)),
        'put all rules into one entry',
    ),
    'rules': (dict(rules={'conv==9x9': RULES['conv==3x3 in layer*']}), 'matches nothing'),
    'option': (dict(inplace=True), 'inplace'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_entries_say_what_is_wrong(case):
    options, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        build_converted(**{**dict(network=resnet(), rules=FEW), **options})
