"""Files as they are met in the wild, good and bad, against what was saved in them."""

from __future__ import annotations

import argparse
import builtins
import json
import os
import pathlib
import pickle

import pytest
import torch

from mmlk.checkpoints import fetch, zoo
from mmlk.checkpoints.fetch import locate, sha256_of
from mmlk.checkpoints.read import read_checkpoint

STATE = {'stem.weight': torch.arange(6.0).reshape(2, 3), 'stem.count': torch.tensor(7)}
EMA = {key: value + 1 for key, value in STATE.items()}

ZIP = pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])


class Payload:
    """Creates a file when unpickled by a loader that runs what a pickle names."""

    def __init__(self, call, path):
        self.call, self.path = call, path

    def __reduce__(self):
        return {
            'system': (os.system, (f'touch {self.path}',)),
            'exec': (exec, (f"open({str(self.path)!r}, 'w').close()",)),
            'mkdir': (os.mkdir, (str(self.path),)),
            'path': (pathlib.Path.touch, (self.path,)),
        }[self.call]


def saved(path, content, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def assert_equal(state, expected):
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value), key


@ZIP
def test_bare_state_dict(tmp_path, zipped):
    state, info = read_checkpoint(saved(tmp_path / 'a.pth', STATE, zipped))
    assert_equal(state, STATE)
    assert info.container == '' and info.others == () and info.notes == []


@ZIP
@pytest.mark.parametrize('container', ['state_dict', 'model', 'model_ema', 'state_dict_ema'])
def test_wrapped_state_dict(tmp_path, container, zipped):
    path = saved(tmp_path / 'a.pth', {container: STATE, 'epoch': 3, 'optimizer': {}}, zipped)
    state, info = read_checkpoint(path)
    assert_equal(state, STATE)
    assert info.container == container


def test_choice_between_several_is_documented_and_explicit(tmp_path):
    path = saved(tmp_path / 'a.pth', {'model_ema': EMA, 'model': STATE})
    state, info = read_checkpoint(path)
    assert_equal(state, STATE)
    assert info.others == ('model_ema',) and "prefer='model_ema'" in info.notes[0]
    assert_equal(read_checkpoint(path, prefer='model_ema')[0], EMA)
    with pytest.raises(ValueError, match="no state dict 'state_dict'; it has model, model_ema"):
        read_checkpoint(path, prefer='state_dict')


@ZIP
def test_trainers_namespace_is_read(tmp_path, zipped):
    args = argparse.Namespace(arch='SLaK_tiny', output=pathlib.Path('out'), lr=4e-3)
    path = saved(tmp_path / 'a.pth', {'model': STATE, 'args': args}, zipped)
    state, info = read_checkpoint(path)
    assert_equal(state, STATE)
    assert (info.args.arch, info.args.lr) == ('SLaK_tiny', 4e-3)


@ZIP
def test_mmengine_checkpoint_is_read(tmp_path, zipped):
    history = pytest.importorskip('mmengine.logging.history_buffer').HistoryBuffer
    numpy = pytest.importorskip('numpy')
    buffer = history([1.0, 2.0], [1, 1])
    path = saved(
        tmp_path / 'a.pth',
        {
            'meta': dict(epoch=1, best=numpy.float64(3.0), seen=numpy.arange(4), when='today'),
            'state_dict': STATE,
            'message_hub': dict(log_scalars={'loss': buffer}, n=numpy.int64(3)),
        },
        zipped,
    )
    assert_equal(read_checkpoint(path)[0], STATE)
    assert buffer.mean() == 1.5  # the real class is untouched


def test_harmless_names_stay_unknown_to_other_loaders(tmp_path):
    path = saved(tmp_path / 'a.pth', {'model': STATE, 'args': argparse.Namespace(a=1)})
    read_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError, match='Namespace'):
        torch.load(path, weights_only=True)


def test_classes_allowed_elsewhere_neither_interfere_nor_get_lost(tmp_path):
    history = pytest.importorskip('mmengine.logging.history_buffer').HistoryBuffer
    numpy = pytest.importorskip('numpy')
    path = saved(
        tmp_path / 'a.pth',
        {
            'state_dict': STATE,
            'hub': history([1.0], [1]),
            'seen': numpy.arange(4),
            'best': numpy.float64(3.0),
            'args': argparse.Namespace(a=1),
        },
    )
    real = [
        history,
        numpy.ndarray,
        numpy.dtype,
        type(numpy.dtype('int64')),
        type(numpy.dtype('float64')),
        numpy.zeros(1).__reduce__()[0],
        numpy.float64(0).__reduce__()[0],
        argparse.Namespace,
    ]
    with torch.serialization.safe_globals(real):
        before = set(torch.serialization.get_safe_globals())
        for _ in range(3):
            assert_equal(read_checkpoint(path)[0], STATE)
        assert set(torch.serialization.get_safe_globals()) == before
        torch.save(numpy.float64(3.0), path)
        assert torch.load(path, weights_only=True) == 3.0


def test_environment_that_forbids_pickles_is_named(tmp_path, monkeypatch):
    target = tmp_path / 'executed'
    path = saved(tmp_path / 'a.pth', {'model': STATE, 'x': Payload('mkdir', target)})
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(RuntimeError, match='unset TORCH_FORCE_WEIGHTS_ONLY_LOAD'):
        read_checkpoint(path, unsafe=True)
    assert not target.exists()


def test_safetensors_with_and_without_the_suffix(tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    for name in ('model.safetensors', 'blob'):
        save_file(STATE, tmp_path / name)
        assert_equal(read_checkpoint(tmp_path / name)[0], STATE)
    (tmp_path / 'cut.safetensors').write_bytes((tmp_path / 'blob').read_bytes()[:-4])
    with pytest.raises(RuntimeError, match='cut.safetensors is cut short or damaged'):
        read_checkpoint(tmp_path / 'cut.safetensors')


def test_safetensors_without_the_package(tmp_path, monkeypatch):
    pytest.importorskip('safetensors.torch').save_file(STATE, tmp_path / 'a.safetensors')
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith('safetensors'):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', refuse)
    with pytest.raises(RuntimeError, match='pip install safetensors'):
        read_checkpoint(tmp_path / 'a.safetensors')


@ZIP
@pytest.mark.parametrize('call', ['system', 'exec', 'mkdir', 'path'])
def test_a_pickle_is_not_executed(tmp_path, call, zipped):
    target = tmp_path / 'executed'
    path = saved(tmp_path / 'a.pth', {'model': STATE, 'x': Payload(call, target)}, zipped)
    with pytest.raises(RuntimeError, match='a.pth can only be read by running.*unsafe=True'):
        read_checkpoint(path)
    assert not target.exists()


@ZIP
@pytest.mark.parametrize('call', ['system', 'exec', 'mkdir'])
def test_a_pickle_is_executed_when_asked_for(tmp_path, call, zipped):
    target = tmp_path / 'executed'
    path = saved(tmp_path / 'a.pth', {'model': STATE, 'x': Payload(call, target)}, zipped)
    assert_equal(read_checkpoint(path, unsafe=True)[0], STATE)
    assert target.exists()


def test_a_whole_module_needs_the_flag(tmp_path):
    path = saved(tmp_path / 'a.pth', torch.nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match='torch.nn.modules.linear.Linear'):
        read_checkpoint(path)
    state, info = read_checkpoint(path, unsafe=True)
    assert state.keys() == {'weight', 'bias'} and 'whole module' in info.notes[0]


@ZIP
@pytest.mark.parametrize('keep', [0, 1, 3, 40, 0.3, 0.6, 0.9, -1])
def test_truncated_file(tmp_path, keep, zipped):
    whole = saved(tmp_path / 'whole.pth', {'model': STATE}, zipped).read_bytes()
    length = int(keep * len(whole)) if isinstance(keep, float) else keep
    path = tmp_path / 'cut.pth'
    path.write_bytes(whole[:length])
    with pytest.raises(RuntimeError, match='read_checkpoint: .*cut.pth') as caught:
        read_checkpoint(path)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'content,words',
    [
        (b'', 'is empty'),
        (b'\n<!DOCTYPE html><html><title>Virus scan warning</title>', 'is a web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n', 'Git LFS pointer'),
        (b'{"error": "not found"}', 'is a text file'),
        (b'hello world, how are you', 'neither a torch.save nor a safetensors file'),
        (pickle.dumps({'a': 1}), 'was not written by torch.save'),
        (b'PK\x05\x06' + bytes(18), 'is a zip archive but not a checkpoint'),
    ],
    ids=['empty', 'html', 'lfs', 'json', 'text', 'pickle', 'zip'],
)
@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_not_a_checkpoint(tmp_path, content, words):
    path = tmp_path / 'a.pth'
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=f'read_checkpoint: .*a.pth .*{words}'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    'content,words',
    [
        ([1, 2], 'holds a list, not a state dict'),
        ({'epoch': 1, 'note': 'x'}, r'holds no tensors .*\(found epoch, note\)'),
        ({'model': {}}, 'holds no tensors'),
    ],
)
def test_checkpoint_without_a_state_dict(tmp_path, content, words):
    with pytest.raises(RuntimeError, match=words):
        read_checkpoint(saved(tmp_path / 'a.pth', content))


def test_other_entries_are_named_and_ignored(tmp_path):
    state, info = read_checkpoint(saved(tmp_path / 'a.pth', {**STATE, 'steps': 5}))
    assert_equal(state, STATE)
    assert 'steps' in info.notes[0]


def test_exported_models_are_refused(tmp_path):
    script = tmp_path / 'recnext_m0_distill_300e_fused.pt'
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(script))
    with pytest.raises(RuntimeError, match='TorchScript archive.*take the .pth file'):
        read_checkpoint(script)
    core_ml = tmp_path / 'recnext_m0_distill_300e_224.mlmodel'
    core_ml.write_bytes(b'\x08\x01')
    with pytest.raises(RuntimeError, match='exported model .*take the .pth file'):
        read_checkpoint(core_ml)


@pytest.mark.parametrize('file', ['recnext_m0_distill_300e_fused.pt', 'net.mlmodel', 'net.onnx'])
def test_exported_models_are_not_even_downloaded(hub, file):
    with pytest.raises(RuntimeError, match=f'{file} is an exported model'):
        read_checkpoint(f'https://example.invalid/releases/{file}')
    assert not hub.exists()


def test_checksum(tmp_path):
    path = saved(tmp_path / 'a.pth', STATE)
    digest = sha256_of(path)
    assert_equal(read_checkpoint(path, sha256=digest)[0], STATE)
    assert_equal(read_checkpoint(path, sha256=digest[:8].upper())[0], STATE)
    with pytest.raises(RuntimeError, match=f'has sha256 {digest}, not 0123'):
        read_checkpoint(path, sha256='0123')


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file .*nowhere.pth'):
        read_checkpoint(tmp_path / 'nowhere.pth')
    with pytest.raises(FileNotFoundError, match='did you mean mmlk://slak_tiny'):
        read_checkpoint('slak_tiny')


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    return tmp_path / 'hub' / 'checkpoints'


def test_download_goes_to_the_hub_cache_once(tmp_path, hub):
    source = saved(tmp_path / 'net.pth', STATE)
    assert_equal(read_checkpoint(source.as_uri())[0], STATE)
    assert (hub / 'net.pth').is_file()
    source.unlink()
    assert_equal(read_checkpoint(source.as_uri())[0], STATE)


def test_generic_names_do_not_collide_in_the_cache(tmp_path, hub):
    for owner, state in (('one', STATE), ('two', EMA)):
        (tmp_path / owner).mkdir()
        source = saved(tmp_path / owner / 'pytorch_model.bin', state)
        assert_equal(read_checkpoint(source.as_uri())[0], state)
    assert len([path for path in hub.iterdir() if path.suffix == '.pth']) == 2


def test_failed_download_leaves_nothing(tmp_path, hub):
    with pytest.raises(RuntimeError, match='gone.pth cannot be downloaded.*by hand'):
        read_checkpoint((tmp_path / 'gone.pth').as_uri())
    assert not (hub / 'gone.pth').exists()


def test_a_page_instead_of_a_file_is_not_kept(tmp_path, hub):
    page = tmp_path / 'net.pth'
    page.write_text('<!doctype html><title>Sign in</title>')
    with pytest.raises(RuntimeError, match='delivers is a web page.*by hand'):
        read_checkpoint(page.as_uri())
    assert not list(hub.glob('net.pth*[!k]'))
    saved(page, STATE)
    assert_equal(read_checkpoint(page.as_uri())[0], STATE)


@pytest.mark.parametrize(
    'name,address,file',
    [
        (
            'inceptionnext_tiny',
            'https://github.com/sail-sg/inceptionnext/releases/download/model/'
            'inceptionnext_tiny.pth',
            'inceptionnext_tiny.pth',
        ),
        (
            'timm/inception_next_tiny.sail_in1k',
            'https://huggingface.co/timm/inception_next_tiny.'
            'sail_in1k/resolve/main/model.safetensors',
            'timm--inception_next_tiny.sail_in1k.safetensors',
        ),
        (
            'slak_tiny',
            'https://drive.usercontent.google.com/download?'
            'id=1Iut2f5FMS_77jGPYoUJDQzDIXOsax1u4&export=download&confirm=t',
            'slak_tiny.pth',
        ),
        (
            'upernet_slak_tiny',
            'https://surfdrive.surf.nl/files/index.php/s/cc6Pqb7IZaecWMv/download',
            'upernet_slak_tiny.pth',
        ),
        (
            'convnext_dcls_base_1k_224_ema',
            'https://zenodo.org/record/7112021/files/convnext_dcls_base_1k_224_ema.pth',
            'convnext_dcls_base_1k_224_ema.pth',
        ),
        (
            'recnext_a3_ade20k',
            'https://github.com/suous/RecNeXt/releases/download/v2.0/recnext_a3_ade20k.pth',
            'recnext_a3_ade20k.pth',
        ),
    ],
)
def test_zoo_names(hub, monkeypatch, name, address, file):
    asked = []

    def offline(url, *_, **__):
        asked.append(url)
        raise RuntimeError('no network')

    monkeypatch.setattr(fetch, 'download', offline)
    with pytest.raises(RuntimeError, match='cannot be downloaded: no network.*by hand') as caught:
        read_checkpoint(f'mmlk://{name}')
    assert asked == [address]
    assert str(hub / file) in str(caught.value) and zoo.find(name).note in str(caught.value)


def test_unknown_zoo_name():
    with pytest.raises(ValueError, match='no checkpoint .*closest: .*inceptionnext_tiny'):
        read_checkpoint('mmlk://inceptionnext_tny')


def test_cached_zoo_file_is_found_without_network(hub):
    hub.mkdir(parents=True)
    saved(hub / 'inceptionnext_atto.pth', STATE)
    assert locate('mmlk://inceptionnext_atto') == hub / 'inceptionnext_atto.pth'


def test_zoo_entries_are_complete():
    from mmlk.checkpoints.fetch import _cache_name
    from mmlk.checkpoints.keymaps import FAMILIES

    cached = [_cache_name(entry.url, entry) for entry in zoo.ENTRIES.values()]
    assert len(set(cached)) == len(cached)
    for name, entry in zoo.ENTRIES.items():
        assert entry.name == name and zoo.find(name) is entry
        assert entry.url.startswith('https://')
        assert entry.arch is None or entry.arch in FAMILIES[entry.family].archs
        assert entry.task in ('classification', 'ade20k', 'coco')
        assert entry.licence in ('Apache-2.0', 'MIT') and '/' in entry.repository
        assert json.dumps(entry.data)
