"""The command that turns published files into files of plain tensors."""

from __future__ import annotations

import argparse
import hashlib
import os

import pytest
import torch
from safetensors import safe_open

from mmlk.backbones import InceptionNeXt
from mmlk.checkpoints import zoo
from mmlk.cli import conversion
from mmlk.networks import DCLSConvNeXt
from tests.cases import MICRO_ARCHS
from tests.checkpoints.cases import classifier, headless

NETWORK = 'inceptionnext/atto'


@pytest.fixture(scope='module')
def published():
    """A classifier's state dict with real shapes and random values."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(value.shape, generator=generator).to(value.dtype)
        for key, value in classifier(NETWORK).items()
    }


def read(path):
    return torch.load(path, weights_only=True)


def test_round_trip(convert, published, tmp_path, capsys):
    source, output = tmp_path / 'a.pth', tmp_path / 'new' / 'b.pth'
    torch.save({'model': published, 'args': argparse.Namespace(lr=1)}, source)
    assert convert(source, output) == 0
    said = capsys.readouterr().out
    assert '220 of 220 keys matched' in said and '6 dropped' in said
    assert hashlib.sha256(output.read_bytes()).hexdigest() in said
    content = read(output)
    assert content['meta']['arch'] == 'atto' and content['meta']['family'] == 'inceptionnext'
    assert content['meta']['source_sha256'] == hashlib.sha256(source.read_bytes()).hexdigest()
    backbone = InceptionNeXt('atto', output_norm=False)
    backbone.load_state_dict(content['state_dict'], strict=True)
    for key, value in headless(published, NETWORK).items():
        assert torch.equal(backbone.state_dict()[key], value), key


def test_safetensors_hold_the_same_tensors_and_say_where_they_come_from(
    convert, published, tmp_path, capsys
):
    torch.save(published, tmp_path / 'a.pth')
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth', '--to', 'authors') == 0
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.safetensors', '--to', 'authors') == 0
    with safe_open(tmp_path / 'b.safetensors', 'pt') as file:
        assert file.metadata()['arch'] == 'atto'
        found = {key: file.get_tensor(key) for key in file.keys()}
    want = read(tmp_path / 'b.pth')['state_dict']
    assert found.keys() == want.keys() == published.keys()
    assert all(torch.equal(found[key], published[key]) for key in found)
    assert convert(tmp_path / 'b.safetensors', tmp_path / 'c.pth') == 0
    modes = [(tmp_path / name).stat().st_mode for name in ('b.safetensors', 'c.pth')]
    assert modes[0] == modes[1], 'others may read one and not the other'
    assert '220 of 220 keys matched' in capsys.readouterr().out


def test_safetensors_of_shared_positions(convert, tmp_path):
    """A format without shared tensors gets copies; the network shares them again."""
    network = DCLSConvNeXt(MICRO_ARCHS['DCLSConvNeXt'], output_norm=False)
    conversion._write(tmp_path / 'a.safetensors', {'x': network.state_dict(), 'meta': {}}, 'x')
    other = DCLSConvNeXt(MICRO_ARCHS['DCLSConvNeXt'], output_norm=False)
    other.load_pretrained(tmp_path / 'a.safetensors')
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_result_does_not_depend_on_place_or_time(convert, published, tmp_path):
    torch.save(published, tmp_path / 'a.pth')
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth') == 0
    assert convert(tmp_path / 'a.pth', tmp_path / 'deep' / 'c.pth') == 0
    assert (tmp_path / 'b.pth').read_bytes() == (tmp_path / 'deep' / 'c.pth').read_bytes()


def test_whole_model_stays_whole_and_a_prefix_takes_the_backbone(
    convert, published, tmp_path, capsys
):
    head = {'decode_head.conv_seg.weight': torch.ones(2), 'neck.convs.0.bias': torch.ones(3)}
    trunk = headless(published, NETWORK)
    whole = {**{f'backbone.{key}': value for key, value in trunk.items()}, **head}
    torch.save(
        {'state_dict': {f'module.{key}': value for key, value in whole.items()}}, tmp_path / 'a.pth'
    )
    assert convert(tmp_path / 'a.pth', tmp_path / 'whole.pth') == 0
    assert '2 keys of decode_head, neck kept as they are' in capsys.readouterr().out
    assert read(tmp_path / 'whole.pth')['state_dict'].keys() == {
        *(f'backbone.{key}' for key in trunk),
        *head,
    }
    assert convert(tmp_path / 'a.pth', tmp_path / 'trunk.pth', '--prefix', 'backbone') == 0
    assert read(tmp_path / 'trunk.pth')['state_dict'].keys() == trunk.keys()


def test_views_are_not_written_with_what_surrounds_them(convert, published, tmp_path):
    padded = {key: torch.stack([value, value, value])[1] for key, value in published.items()}
    torch.save(padded, tmp_path / 'a.pth')
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth') == 0
    assert (tmp_path / 'b.pth').stat().st_size < 0.5 * (tmp_path / 'a.pth').stat().st_size


def test_refuses_to_overwrite(convert, published, tmp_path, capsys):
    torch.save(published, tmp_path / 'a.pth')
    (tmp_path / 'b.pth').write_text('mine')
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth') == 1
    assert 'b.pth exists' in capsys.readouterr().err
    assert (tmp_path / 'b.pth').read_text() == 'mine'


def test_other_endings_are_refused(convert, published, tmp_path, capsys):
    torch.save(published, tmp_path / 'a.pth')
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.safetensor') == 1
    assert 'b.safetensor must end in .pth, .pt, .bin or .safetensors' in capsys.readouterr().err
    assert not (tmp_path / 'b.safetensor').exists()


def test_writes_nothing_when_it_fails(convert, published, tmp_path, capsys, monkeypatch):
    lost = {key: value for key, value in published.items() if key != 'stem.0.bias'}
    torch.save(lost, tmp_path / 'a.pth')
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth') == 1
    assert '1 missing: stem.0.bias' in capsys.readouterr().err
    torch.save({'layer1.0.conv1.weight': torch.ones(1)}, tmp_path / 'r.pth')
    assert convert(tmp_path / 'r.pth', tmp_path / 'b.pth') == 1
    assert 'holds ResNet; name its --family and --arch' in capsys.readouterr().err
    torch.save(published, tmp_path / 'a.pth')

    def full(content, file):
        file.write(b'half')
        raise OSError('disk full')

    with monkeypatch.context() as patch:
        patch.setattr(torch, 'save', full)
        assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth') == 1
    assert 'disk full' in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ['a.pth', 'r.pth']


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_run_only_by_flag(convert, published, tmp_path, capsys):
    target = tmp_path / 'executed'
    torch.save({'model': published, 'x': Touch(target)}, tmp_path / 'a.pth')
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth') == 1
    assert '--unsafe-pickle' in capsys.readouterr().err
    assert not target.exists() and not (tmp_path / 'b.pth').exists()
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth', '--unsafe-pickle') == 0
    assert target.exists()


def test_checksum_and_choice_flags(convert, published, tmp_path, capsys):
    torch.save({'model': published, 'model_ema': published}, tmp_path / 'a.pth')
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth', '--sha256', '00ff') == 1
    assert 'not 00ff' in capsys.readouterr().err
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth', '--prefer', 'model_ema') == 0
    assert read(tmp_path / 'b.pth')['meta']['entry'] == 'model_ema'


def test_list_names_every_checkpoint(convert, capsys):
    assert convert('--list') == 0
    said = capsys.readouterr().out
    assert all(f'{zoo.SCHEME}{name} ' in said for name in zoo.ENTRIES)


def test_averages_of_mmengine_are_freed_of_wrapper_and_counter(
    convert, published, tmp_path, capsys
):
    average = {f'module.{key}': value for key, value in published.items()}
    content = dict(state_dict=published, message_hub={}, meta={})
    torch.save(
        dict(content, ema_state_dict=dict(average, steps=torch.tensor(4))), tmp_path / 'a.pth'
    )
    words = ['--prefer', 'ema_state_dict', '--to', 'timm']
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth', *words) == 0
    assert 'head for 1000 classes' in capsys.readouterr().out
    assert read(tmp_path / 'b.pth')['state_dict'].keys() == published.keys()
    assert convert(tmp_path / 'a.pth', tmp_path / 'c.pth') == 0
    assert "MMEngine's files have the average in state_dict" in capsys.readouterr().out
