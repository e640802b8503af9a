"""Every config: loads, survives a dump, is inherited, builds, fits its backbone, is in the model zoo."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmlk
from mmlk.checkpoints import zoo
from mmlk.registry import MODELS

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.name for path in (ROOT / 'configs').glob('*.py'))
SEGMENTATION = [name for name in CONFIGS if name.startswith(('upernet', 'fpn'))]
CLASSIFICATION = [name for name in CONFIGS if '_in1k' in name]
DENSE = [name for name in CONFIGS if name not in CLASSIFICATION]
METHODS = ('upernet', 'fpn', 'mask_rcnn', 'cascade_mask_rcnn')
BACKBONES = ('inceptionnext', 'slak', 'dcls_convnext', 'recnext')


def load(name):
    return Config.fromfile(mmlk.config_path(name))


def zoo_entry(weights):
    """The published file that a metafile names, by name or by address."""
    return next(
        entry
        for entry in zoo.ENTRIES.values()
        if weights in (f'{zoo.SCHEME}{entry.name}', entry.url)
    )


def metafile_models():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    models = {}
    for path in index['Import']:
        for model in yaml.safe_load((ROOT / path).read_text())['Models']:
            models[model['Name']] = model
    return models


@pytest.mark.parametrize('name', CLASSIFICATION)
def test_name_of_a_classifier_follows_the_scheme(name):
    backbone = next(b for b in BACKBONES if name.startswith(f'{b}_'))
    assert load(name).model.backbone.type.lower() == f'mmlk.{backbone.replace("_", "")}'
    assert name.endswith(('_in1k.py', '_in1k_mini.py'))


@pytest.mark.parametrize('name', DENSE)
def test_name_follows_the_scheme(name):
    method = next(m for m in sorted(METHODS, key=len, reverse=True) if name.startswith(f'{m}_'))
    rest = name.removesuffix('.py').removeprefix(f'{method}_')
    backbone = next(b for b in BACKBONES if rest.startswith(f'{b}_'))
    parts = rest.removeprefix(f'{backbone}_').split('_')
    assert 'ade20k' in parts or 'coco' in parts


@pytest.mark.parametrize('name', CONFIGS)
def test_dump_reloads_and_downstream_inherits(name, tmp_path):
    config = load(name)
    config.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == config.to_dict()
    (tmp_path / 'prefix.py').write_text(f"_base_ = 'mmlk::{name}'\n")
    (tmp_path / 'expression.py').write_text(
        f"_base_ = [__import__('mmlk').config_path('{name}')]\n"
    )
    for downstream in ('prefix.py', 'expression.py'):
        assert Config.fromfile(tmp_path / downstream).to_dict() == config.to_dict()


@pytest.mark.parametrize('name', CONFIGS)
def test_model_zoo_lists_it_with_the_recipe(name):
    entry = metafile_models()[name.removesuffix('.py')]
    assert entry['Config'] == f'configs/{name}'
    config = load(name)
    batch = config.auto_scale_lr['base_batch_size']
    accumulated = config.optim_wrapper.get('accumulative_counts', 1)
    assert entry['Metadata']['Batch Size'] == batch
    assert entry['Metadata']['GPUs'] * config.train_dataloader.batch_size * accumulated == batch
    length = {
        'IterBasedTrainLoop': ('Iterations', 'max_iters'),
        'EpochBasedTrainLoop': ('Epochs', 'max_epochs'),
    }[config.train_cfg.get('type', 'EpochBasedTrainLoop')]
    assert entry['Metadata'][length[0]] == config.train_cfg[length[1]]
    if name in DENSE:
        assert entry.get('Weights') == config.model.backbone.get('init_cfg', {}).get('checkpoint')
    elif not name.endswith('_mini.py'):
        published = zoo_entry(entry['Weights'])
        assert published.task == 'classification'
        assert published.arch == config.model.backbone.arch
        assert f'mmlk.{published.family.replace("_", "")}' == config.model.backbone.type.lower()


def test_model_zoo_lists_nothing_else():
    assert sorted(metafile_models()) == sorted(name.removesuffix('.py') for name in CONFIGS)


@pytest.mark.parametrize('name', CONFIGS)
def test_backbone_builds_and_its_channels_fit(name):
    config = load(name)
    with torch.device('meta'):
        backbone = MODELS.build(config.model.backbone)
    if name in CLASSIFICATION:
        assert backbone.out_channels == (config.model.head.in_channels,)
        return
    consumer = config.model.get('neck') or config.model.decode_head
    assert list(backbone.out_channels) == list(consumer.in_channels)
    if config.model.get('auxiliary_head'):
        head = config.model.auxiliary_head
        assert backbone.out_channels[head.in_index] == head.in_channels


@pytest.mark.parametrize('name', SEGMENTATION)
@pytest.mark.slow
def test_segmentor_builds_and_trains_a_step_on_random_pixels(name):
    from mmengine.model import revert_sync_batchnorm
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS as SEGMENTORS
    from mmseg.structures import SegDataSample

    config = load(name)
    init_default_scope('mmseg')
    settings = copy.deepcopy(config.model)
    settings.data_preprocessor.size = (64, 64)
    settings.backbone.pop('init_cfg', None)
    segmentor = revert_sync_batchnorm(SEGMENTORS.build(settings)).train()
    sample = SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64)))
    sample.gt_sem_seg = PixelData(
        data=torch.randint(0, settings.decode_head.num_classes, (1, 64, 64))
    )
    images = [torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    batch = segmentor.data_preprocessor(
        dict(inputs=images, data_samples=[sample, sample.clone()]), training=True
    )
    losses = segmentor(**batch, mode='loss')
    total = sum(value for key, value in losses.items() if 'loss' in key)
    total.backward()
    assert torch.isfinite(total)
    unused = [key for key, p in segmentor.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == [], 'distributed training would wait for these for ever'


def test_data_root_follows_the_environment(monkeypatch):
    monkeypatch.setenv('MMLK_ADE20K_ROOT', '/somewhere/else')
    config = load('upernet_inceptionnext_b_ade20k.py')
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert loader.dataset.data_root == '/somewhere/else'


def test_unknown_config_lists_close_names():
    with pytest.raises(ValueError, match='upernet_inceptionnext_b_ade20k.py'):
        mmlk.config_path('upernet_inceptionnxt_b_ade20k.py')
