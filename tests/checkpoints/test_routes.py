"""Damaged and hostile files are refused by every route that reads one, with name and remedy.

Scenarios: 7 routes x (truncated, flipped bit, empty, web page, absent), hostile files, flipped bits
anywhere, safetensors in 7 states, whole models in 6 wrappings, heads alone, files of other kinds.
"""

from __future__ import annotations

import logging
import os
import traceback
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import load_checkpoint

from mmlk.checkpoints.read import read_checkpoint
from mmlk.cli import loading
from mmlk.cli.checkpoint import check_weights, locate
from tests.checkpoints.test_wrappings import Model, build


@pytest.fixture(autouse=True)
def reader(monkeypatch):
    """The process as the tools prepare it."""
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    loading.read_only_tensors()


def initialise(path):
    build('InceptionNeXt', init_cfg=dict(type='Pretrained', checkpoint=str(path))).init_weights()


class Head(BaseModule):
    """A module of another package, initialised by MMEngine itself."""

    def __init__(self, checkpoint):
        super().__init__(dict(type='Pretrained', checkpoint=str(checkpoint)))
        self.linear = torch.nn.Linear(2, 2)


ROUTES = {
    'reader': read_checkpoint,
    'backbone-init_cfg': initialise,
    'other-init_cfg': lambda path: Head(path).init_weights(),
    'load_from-and-resume': lambda path: load_checkpoint(
        Model(build('InceptionNeXt')), str(path), map_location='cpu'
    ),
}
EARLY = {
    'argument': lambda path: locate(str(path)),
    'config-load_from': lambda path: check_weights(Config(dict(load_from=str(path)))),
    'config-init_cfg': lambda path: check_weights(
        Config(
            dict(model=dict(neck=[dict(init_cfg=dict(type='Pretrained', checkpoint=str(path)))]))
        )
    ),
}


class Payload:
    """A pickle that makes a folder when it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def truncate(path):
    os.truncate(path, int(path.stat().st_size * 0.7))


def flip(path, bit=None):
    content = bytearray(path.read_bytes())
    bit = 8 * (len(content) // 2) if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


SPOILT = {
    'truncated': (truncate, 'cut short'),
    'flipped-bit': (flip, 'checksum of its record .* differs'),
    'zero-length': (lambda path: os.truncate(path, 0), 'is empty'),
    'web-page': (lambda path: path.write_text('<html>'), 'web page'),
    'absent': (os.remove, 'there is no file|does not exist'),
}


def saved(path):
    model = Model(build('InceptionNeXt'))
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=1)), path)
    return path


@pytest.mark.parametrize('fault', SPOILT)
@pytest.mark.parametrize('route', [*ROUTES, *EARLY])
def test_spoilt_file_is_refused_by_name(tmp_path, route, fault):
    path = saved(tmp_path / 'net.pth')
    spoil, words = SPOILT[fault]
    spoil(path)
    with pytest.raises((RuntimeError, ValueError, FileNotFoundError), match=words) as caught:
        {**ROUTES, **EARLY}[route](path)
    assert str(path) in str(caught.value)
    assert 'weights_only' not in ''.join(traceback.format_exception(caught.value))


@pytest.mark.parametrize('route', ROUTES)
def test_hostile_file_is_refused_without_advice_to_run_it(tmp_path, route):
    path, target = tmp_path / 'net.pth', tmp_path / 'executed'
    torch.save(dict(state_dict={'a': torch.ones(1)}, extra=Payload(target)), path)
    with pytest.raises(RuntimeError, match='running what it names .*--unsafe-pickle') as caught:
        ROUTES[route](path)
    said = ''.join(traceback.format_exception(caught.value))
    assert str(path) in said and 'weights_only' not in said.replace('weights_only=True)', '')
    assert not target.exists()


@pytest.mark.parametrize('seed', range(4))
def test_any_flipped_bit_is_refused_or_harmless(tmp_path, seed):
    state = {'a.weight': torch.arange(400.0), 'b': torch.arange(7)}
    torch.save({'model': state}, tmp_path / 'whole.pth')
    content, path = (tmp_path / 'whole.pth').read_bytes(), tmp_path / 'net.pth'
    random = torch.Generator().manual_seed(seed)
    refused = 0
    for bit in torch.randint(8 * len(content), (150,), generator=random).tolist():
        path.write_bytes(content)
        flip(path, bit)
        try:
            read, _ = read_checkpoint(path)
        except RuntimeError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert read.keys() == state.keys(), bit
            assert all(torch.equal(read[key], state[key]) for key in state), bit
    assert refused > 50


def test_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'a': torch.ones(3)}, tmp_path / 'a.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / 'a.pth')[0]['a'].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    'spoil',
    [
        lambda content: content[:-4],
        lambda content: content[:40],
        lambda content: content[:5],
        lambda content: content + b'12',
        lambda content: bytes([255]) * 8 + content[8:],
        lambda content: content.replace(b'data_offsets', b'data_0ffsets'),
        lambda content: content.replace(b'"F32"', b'"F16"'),
    ],
    ids=['cut', 'cut-in-header', 'cut-in-length', 'longer', 'length', 'key', 'type'],
)
def test_spoilt_safetensors_is_refused_by_name(tmp_path, spoil):
    save_file = pytest.importorskip('safetensors.torch').save_file
    save_file({'a': torch.ones(3), 'b': torch.ones(2, 2)}, tmp_path / 'whole.safetensors')
    path = tmp_path / 'net.safetensors'
    path.write_bytes(spoil((tmp_path / 'whole.safetensors').read_bytes()))
    with pytest.raises(RuntimeError, match='net.safetensors is cut short or damaged'):
        read_checkpoint(path)


def prepared(path, content):
    torch.save(content, path)
    return str(path)


def full(model, word=''):
    return {word + key: value for key, value in model.state_dict().items()}


LOAD_FROM = {
    'plain': lambda m: dict(state_dict=full(m)),
    'bare': full,
    'ddp': lambda m: dict(state_dict=full(m, 'module.')),
    'compiled': lambda m: dict(state_dict=full(m, '_orig_mod.')),
    'fsdp': lambda m: dict(
        state_dict={
            k.replace('backbone.', 'backbone._fsdp_wrapped_module.'): v for k, v in full(m).items()
        }
    ),
    'authors-container': lambda m: dict(model=full(m), epoch=1),
}


@pytest.mark.parametrize('form', LOAD_FROM)
def test_whole_models_load_in_every_wrapping(tmp_path, form):
    source, target = Model(build('SLaK')), Model(build('SLaK', seed=1))
    path = prepared(tmp_path / 'a.pth', LOAD_FROM[form](source))
    load_checkpoint(target, path, map_location='cpu', strict=True)
    want = source.state_dict()
    assert all(torch.equal(value, want[key]) for key, value in target.state_dict().items())


def test_heads_alone_leave_the_backbone(tmp_path):
    source, target = Model(build('SLaK')), Model(build('SLaK', seed=1))
    backbone = {key: value.clone() for key, value in target.backbone.state_dict().items()}
    heads = {k: v for k, v in source.state_dict().items() if k.startswith('decode_head')}
    path = prepared(tmp_path / 'a.pth', dict(state_dict=heads))
    load_checkpoint(target, path, map_location='cpu')
    assert torch.equal(target.decode_head.weight, source.decode_head.weight)
    assert all(torch.equal(v, backbone[k]) for k, v in target.backbone.state_dict().items())


@pytest.mark.parametrize(
    'content',
    [
        lambda source: source.backbone.state_dict(),
        lambda source: {'layer1.0.conv1.weight': torch.ones(1)},
        lambda source: {'decode_head.weight': torch.ones(1), 'other.weight': torch.ones(1)},
    ],
    ids=['backbone-alone', 'resnet', 'heads-and-a-stranger'],
)
def test_a_file_that_is_no_whole_model_is_refused_by_load_from(tmp_path, content):
    path = prepared(tmp_path / 'a.pth', content(Model(build('SLaK'))))
    with pytest.raises(ValueError, match='no key to load.*init_cfg'):
        load_checkpoint(Model(build('SLaK', seed=1)), path, map_location='cpu')


def test_a_published_file_loads_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    (tmp_path / 'checkpoints').mkdir()
    source, target = Model(build('SLaK')), Model(build('SLaK', seed=1))
    prepared(tmp_path / 'checkpoints' / 'upernet_slak_tiny.pth', dict(state_dict=full(source)))
    load_checkpoint(target, 'mmlk://upernet_slak_tiny', map_location='cpu', strict=True)
    assert torch.equal(target.decode_head.weight, source.decode_head.weight)


@pytest.mark.parametrize(
    'trained, dataset, warned',
    [
        (
            ['a', 'b'],
            {'metainfo': {'classes': ('a', 'c')}},
            "class 1 is 'b' in the checkpoint and 'c'",
        ),
        (['a', 'b'], {'metainfo': {'classes': ('a', 'b')}}, None),
        (['a', 'b'], {}, None),
        (None, {'metainfo': {'classes': ('a', 'b')}}, None),
    ],
)
def test_class_names_of_checkpoint_and_data_are_compared(trained, dataset, warned, caplog):
    runner = SimpleNamespace(
        test_loop=SimpleNamespace(dataloader=SimpleNamespace(dataset=SimpleNamespace(**dataset))),
        logger=logging.getLogger('names'),
    )
    meta = dict(dataset_meta=dict(classes=trained)) if trained else {}
    with caplog.at_level(logging.WARNING, 'names'):
        loading.ClassNames().after_load_checkpoint(runner, dict(meta=meta))
    assert caplog.text == '' if warned is None else warned in caplog.text
