"""Networks by name: against recorded scores, timm, hooks, and the files as they are published."""

import logging
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import mmlk
from mmlk import networks
from mmlk.checkpoints import download, zoo
from mmlk.models import names
from mmlk.models.create import pretrained_cfg
from tests.cases import GOLDEN_OPERATOR, TOLERANCE, assert_close
from tests.classification.models import published, recorded_logits
from tests.golden_weights import assert_matches, golden_input, load_golden_weights
from tests.tools.workbench import ROOT

RECORDS = {'recnext_m0': 'recnext/recnext_m0', 'inceptionnext_atto': 'inceptionnext/atto'}
ONE_OF_EACH = (
    'inceptionnext_atto',
    'slak_tiny',
    'dcls_convnext_tiny',
    'recnext_t',
    'replknet_31b',
    'unireplknet_a',
)
EXACT = TOLERANCE[torch.float32][0]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Name -> the author's file, and its safetensors form, in a folder like torch's cache."""
    folder = tmp_path_factory.mktemp('hub') / 'checkpoints'
    folder.mkdir()
    found = {}
    for name, record in RECORDS.items():
        _, entry = names.find(name)
        state = published(record)
        path = folder / entry.url.rpartition('/')[2]
        torch.save(state, path)
        save_file(state, folder / f'{path.stem}.safetensors')
        found[name] = path
    hub = folder / 'suous--recnext_m0.dist_300e_in1k.safetensors'
    hub.write_bytes(found['recnext_m0'].with_suffix('.safetensors').read_bytes())
    return found


@pytest.fixture
def cache(files, monkeypatch):
    """torch's cache holds the files, and nothing can be downloaded."""

    def refuse(request, *_, **__):
        raise OSError(f'no network in tests: {request.full_url}')

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(files['recnext_m0'].parents[1]))
    monkeypatch.setattr(download.urllib.request, 'urlopen', refuse)
    monkeypatch.setattr(download, '_WAITS', ())


def x(channels=3, size=64):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_every_network_has_a_name_and_every_published_classifier_a_tag():
    kinds = networks.FAMILIES.values()
    assert set(mmlk.list_models()) == {
        f'{kind.family}_{arch}' for kind in kinds for arch in kind.arch_settings
    }
    listed = mmlk.list_models(pretrained=True)
    assert len(listed) == len(set(listed)) and set(mmlk.list_models()) <= set(listed)
    reached = {(entry.family, entry.arch, entry.data) for _, entry in map(names.find, listed)}
    assert reached == {
        (entry.family, entry.arch, entry.data)
        for entry in zoo.ENTRIES.values()
        if entry.task == 'classification' and entry.arch
    }


@pytest.mark.parametrize(
    'pattern, pretrained, want',
    [
        ('slak_base', False, ['slak_base']),
        ('recnext_m0', True, ['recnext_m0', 'recnext_m0.base_300e_in1k']),
        ('*_384', True, []),
        ('inception*.*_384', True, ['inceptionnext_base.sail_in1k_384']),
        (['slak_small', '*gauss'], False, ['slak_small', 'dcls_convnext_tiny_gauss']),
    ],
)
def test_patterns(pattern, pretrained, want):
    assert mmlk.list_models(pattern, pretrained=pretrained) == want


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_configuration_names_real_layers_and_the_address_of_the_file(name):
    variant, entry = names.find(name)
    with torch.device('meta'):
        model = mmlk.create_model(name)
    cfg = model.pretrained_cfg
    assert cfg == pretrained_cfg(variant, entry) and cfg['url'] == entry.url
    assert cfg['url'].startswith('https://')
    first = model.get_submodule(cfg['first_conv'])
    assert first.in_channels == 3 and first is next(
        module for module in model.modules() if isinstance(module, torch.nn.Conv2d)
    )
    layers = cfg['classifier'] if isinstance(cfg['classifier'], tuple) else (cfg['classifier'],)
    assert [model.get_submodule(layer).out_features for layer in layers] == [1000] * len(layers)
    own = model.get_classifier()
    assert (own if isinstance(own, tuple) else (own,)) == tuple(map(model.get_submodule, layers))


def test_images_are_prepared_as_the_configs_do():
    from mmengine.config import Config

    for name, config in (
        ('recnext_m3', 'recnext_m3_in1k'),
        ('slak_tiny', 'slak_t_in1k'),
        ('dcls_convnext_tiny', 'dcls_convnext_t_in1k'),
        ('inceptionnext_base', 'inceptionnext_b_in1k'),
        ('inceptionnext_base.sail_in1k_384', 'inceptionnext_b_384_in1k'),
    ):
        cfg = pretrained_cfg(*names.find(name))
        theirs = Config.fromfile(mmlk.config_path(config))
        resize, crop = theirs.test_dataloader.dataset.pipeline[1:3]
        side = cfg['input_size'][1]
        assert (crop.crop_size, resize.scale) == (side, side / cfg['crop_pct'])
        assert resize.interpolation == cfg['interpolation']
        for key in ('mean', 'std'):
            want = [value / 255 for value in theirs.data_preprocessor[key]]
            assert cfg[key] == pytest.approx(want, abs=1e-4)


def test_images_of_files_without_a_config_are_prepared_as_their_authors_do():
    """By the published scripts: the shorter side by 256 / 224 below 384 pixels, and XL's own colours."""
    found = {
        name: pretrained_cfg(*names.find(name))
        for name in ('replknet_xl', 'unireplknet_b', 'unireplknet_l.in22k')
    }
    assert {name: (cfg['input_size'][1], cfg['crop_pct']) for name, cfg in found.items()} == {
        'replknet_xl': (320, 0.875),
        'unireplknet_b': (384, 1.0),
        'unireplknet_l.in22k': (192, 0.875),
    }
    assert found['replknet_xl']['mean'] == found['replknet_xl']['std'] == (0.5, 0.5, 0.5)
    assert [cfg['num_classes'] for cfg in found.values()] == [1000, 1000, 21841]


@torch.no_grad()
def test_published_file_gives_the_recorded_scores(files):
    name = 'recnext_m0'
    model = mmlk.create_model(name, pretrained=files[name]).eval()
    shape, summary = recorded_logits(RECORDS[name])[0]
    assert_matches(name, model(golden_input(shape)), summary, GOLDEN_OPERATOR)
    again = mmlk.create_model(name, pretrained=files[name].with_suffix('.safetensors'))
    for key, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


@pytest.mark.parametrize(
    'name, options',
    [
        ('recnext_m0', dict(pretrained=True)),
        ('recnext_m0', dict(pretrained='hf-hub:suous/recnext_m0.dist_300e_in1k')),
        ('recnext_m0', dict(pretrained=True, features_only=True)),
    ],
)
def test_every_way_to_name_published_weights_finds_them(cache, files, name, options):
    model = mmlk.create_model(name, **options)
    want = torch.load(files['recnext_m0'], weights_only=True)
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, want[key]), key


def test_a_tag_without_its_file_is_downloaded_from_where_it_is_published(cache):
    url = 'https://github.com/suous/RecNeXt/releases/download/v1.0/recnext_m0_without_distill_300e.pth'
    with pytest.raises(RuntimeError, match=f'no network in tests: {url}'):
        mmlk.create_model('recnext_m0.base_300e_in1k', pretrained=True)


def test_a_model_saved_here_comes_back(tmp_path):
    model = mmlk.create_model('recnext_m0', num_classes=3)
    save_file(model.state_dict(), tmp_path / 'a.safetensors')
    again = mmlk.create_model(
        'recnext_m0', num_classes=3, checkpoint_path=tmp_path / 'a.safetensors'
    )
    for key, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_another_number_of_classes_leaves_the_last_layers_and_says_so(files, caplog):
    file = files['recnext_m0']
    with caplog.at_level(logging.WARNING, 'mmlk'):
        model = mmlk.create_model('recnext_m0', pretrained=file, num_classes=5)
    assert 'the file is for 1000 classes, the module for 5' in caplog.text
    want = mmlk.create_model('recnext_m0', pretrained=file).state_dict()
    for key, value in model.state_dict().items():
        if value.shape == want[key].shape:
            assert torch.equal(value, want[key]), key
        else:
            assert value.shape[0] == 5 and key.startswith(model.default_cfg['classifier']), key
    with caplog.at_level(logging.WARNING, 'mmlk'):
        caplog.clear()
        mmlk.create_model('recnext_m0', pretrained=file, num_classes=0)
    assert not caplog.records


@pytest.mark.parametrize('channels, features_only', [(1, False), (4, True), (7, False)])
def test_stem_is_adapted_as_timm_does(files, channels, features_only):
    manipulate = pytest.importorskip('timm.models._manipulate')
    model = mmlk.create_model(
        'inceptionnext_atto',
        pretrained=files['inceptionnext_atto'],
        in_chans=channels,
        features_only=features_only,
    )
    stem = torch.load(files['inceptionnext_atto'], weights_only=True)['stem.0.weight']
    want = manipulate.adapt_input_conv(channels, stem)
    assert_close('stem', model.get_submodule(model.default_cfg['first_conv']).weight, want, EXACT)


def _headless(state):
    return {key: value for key, value in state.items() if not key.startswith('head')}


def _nan_in_head(state):
    return {k: v * float('nan') if k == 'head.head.linear.bias' else v for k, v in state.items()}


def _short(state):
    return {k: v for k, v in state.items() if not k.startswith('stages.3')}


@pytest.mark.parametrize(
    'damage, message',
    [
        (_headless, 'the file has no such head'),
        (_nan_in_head, 'NaN or infinite values in the head'),
        (_short, 'does not cover the backbone'),
    ],
)
def test_a_file_loads_completely_or_not_at_all(tmp_path, damage, message):
    model = mmlk.create_model('recnext_m0')
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save(damage(published(RECORDS['recnext_m0'])), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=message):
        model.load_pretrained(tmp_path / 'a.pth')
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(name='recnext_m33'), "no model 'recnext_m33'; closest names: .*recnext_m3"),
        (dict(name='resnet50.a1_in1k'), "there is no model 'resnet50.a1_in1k'"),
        (dict(name='slak_tiny.a1'), "no weights 'a1'; it has in1k_300e, in1k_120e"),
        (dict(out_indices=(1,)), 'needs features_only=True'),
        (dict(features_only=True, out_indices=(1, 4)), r'\(1, 4\) must be rising'),
        (dict(features_only=True, out_indices=5), 'not the number of last stages'),
        (dict(pretrained=True, checkpoint_path='a.pth'), 'give one'),
        (dict(drop_rate=0.1), 'drop_rate 0.1 has no place in the head of RecNeXt'),
        (dict(num_classes=-1), 'num_classes -1 must be positive'),
        (dict(pretrained='hf-hub:nowhere'), "'hf-hub:nowhere' is not hf-hub:OWNER/NAME"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mmlk.create_model(**{'name': 'recnext_m0', **options})


@pytest.mark.parametrize(
    'name, given, want',
    [
        ('inceptionnext_atto', None, (0, 1, 2, 3)),
        ('recnext_m0', (-3, 3), (1, 3)),
        ('recnext_t', 2, (2, 3)),
    ],
)
@torch.no_grad()
def test_described_modules_return_the_maps(name, given, want):
    model = mmlk.create_model(name, features_only=True, out_indices=given).eval()
    info, seen = model.feature_info, {}
    for i, module in enumerate(info.module_name((0, 1, 2, 3))):
        model.get_submodule(module).register_forward_hook(
            lambda _m, _x, y, i=i: seen.update({i: y})
        )
    maps = model(x())
    assert isinstance(maps, list) and info.out_indices == want
    for i, module, channels, reduction, value in zip(
        want, info.module_name(), info.channels(), info.reduction(), maps, strict=True
    ):
        assert module == info.module_name(i) == info[i]['module']
        assert value.shape == (2, channels, 64 // reduction, 64 // reduction)
        assert torch.equal(seen[i], value)


def test_description_answers_as_timms_does():
    features = pytest.importorskip('timm.models._features')
    info = mmlk.create_model('recnext_m0', features_only=True, out_indices=(1, 3)).feature_info
    theirs = features.FeatureInfo([dict(entry) for entry in info.info], (1, 3))
    assert len(info) == len(theirs) and info[2] == theirs[2]
    for index in (None, 2, (0, 3)):
        for method in ('channels', 'reduction', 'module_name'):
            assert getattr(info, method)(index) == getattr(theirs, method)(index)
        for keys in (None, ['num_chs']):
            assert info.get_dicts(keys, index) == theirs.get_dicts(keys, index)


@torch.no_grad()
def test_classifier_and_maps_are_timms():
    timm = pytest.importorskip('timm')
    theirs = load_golden_weights(timm.create_model('inception_next_atto')).eval()
    ours = mmlk.create_model('inceptionnext_atto').eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    maps = timm.create_model('inception_next_atto', features_only=True).eval()
    load_golden_weights(maps)
    own = mmlk.create_model('inceptionnext_atto', features_only=True).eval()
    own.backbone.load_state_dict(maps.state_dict())
    want, got = maps(x()), own(x())
    assert maps.feature_info.channels() == own.feature_info.channels()
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_close(f'map {i}', a, b, 10 * EXACT)
    features = theirs.forward_features(x())
    assert_close('features', ours.forward_features(x()), features, 10 * EXACT)
    for pre_logits in (False, True):
        got, want = (m.forward_head(features, pre_logits=pre_logits) for m in (ours, theirs))
        assert_close(f'pre_logits {pre_logits}', got, want, 10 * EXACT)
    for attribute in ('num_features', 'head_hidden_size', 'num_classes'):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    for classes, width in ((0, 960), (7, 7)):
        for model in (ours, theirs):
            model.reset_classifier(classes)
            assert model.num_classes == classes and model(x()).shape == (2, width)


def test_without_classes_the_scores_are_the_features_before_them():
    whole = mmlk.create_model('recnext_m0')
    bare = mmlk.create_model('recnext_m0', num_classes=0)
    bare.load_state_dict(whole.state_dict(), strict=False)
    features = bare(x())
    features.sum().backward()
    assert all(p.grad is not None for p in bare.parameters() if p.requires_grad)
    with torch.no_grad():
        want = bare.forward_head(whole.forward_features(x()), pre_logits=True)
    assert_close('features', features, want, EXACT)
    assert want.shape == (2, whole.head_hidden_size)
    assert bare.head.switch_to_deploy()(want[..., None, None]).equal(want)
    whole.reset_classifier(0)
    whole.reset_classifier(4)
    assert all(p.requires_grad for p in whole.parameters())
    assert [layer.out_features for layer in whole.get_classifier()] == [4, 4]


def test_recomputation_is_a_switch():
    model = mmlk.create_model('inceptionnext_atto')
    for enable in (True, False):
        model.set_grad_checkpointing(enable)
        assert all(stage.recomputes is enable for stage in model.backbone.stages)


def test_torch_hub_has_the_networks():
    model = torch.hub.load(str(ROOT), 'recnext_m0', source='local', num_classes=3)
    assert model.num_classes == 3 and model.default_cfg['architecture'] == 'recnext_m0'


ALONE = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmengine', 'mmcv', 'mmpretrain', 'mmseg', 'mmdet', 'timm', 'yaml'):
            raise ModuleNotFoundError(f'{name} is not there')

sys.meta_path.insert(0, Absent())
import mmlk
names = mmlk.list_models('[!i]*tiny')
assert 'torch' not in sys.modules
import torch
with torch.device('meta'):
    for name in (*names, 'recnext_a0'):
        mmlk.create_model(name)
model = mmlk.create_model('recnext_m0', pretrained=sys.argv[1]).eval()
maps = mmlk.create_model('recnext_m0', pretrained=sys.argv[1], features_only=True).eval()
with torch.no_grad():
    found = maps(torch.ones(1, 3, 64, 64))
    print(model.forward_head(found[-1]).shape[1], len(found))
"""


def test_torch_is_all_that_is_needed(files):
    done = subprocess.run(
        [sys.executable, '-c', ALONE, str(files['recnext_m0'])],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout.split()) == (0, ['1000', '4']), done.stderr
