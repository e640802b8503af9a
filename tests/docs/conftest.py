"""What the pages take for granted: a trained model, pictures, and the files that they download."""

import argparse
import json
import shlex

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

import mmlk
from mmlk.checkpoints import download, zoo
from mmlk.cli import program
from mmlk.ops import dispatch
from tests.commands.conftest import CLASSES, trained  # noqa: F401  (a fixture)
from tests.docs.pages import ROOT

DOWNLOADS = ('recnext_m3_distill_300e',)
"""Files of the zoo that blocks load; stand-ins with random weights lie in the cache."""
PUBLISH = 'mmlk publish work_dirs/my_config/last_checkpoint --metric mIoU=47.6 --licence Apache-2.0'
"""The command of the pages that makes the file which later blocks name."""


@pytest.fixture(scope='session')
def place(trained, tmp_path_factory):  # noqa: F811
    """A folder with everything that blocks name: ``my_config.py``, its run, photos, model files."""
    folder = tmp_path_factory.mktemp('reader')
    (folder / 'my_config.py').write_bytes((trained / 'tiny.py').read_bytes())
    run = folder / 'work_dirs/my_config'
    run.mkdir(parents=True)
    (run / 'iter_160000.pth').write_bytes((trained / 'iter_4.pth').read_bytes())
    (run / 'last_checkpoint').write_text(str(run / 'iter_160000.pth'))
    (folder / 'photos/more').mkdir(parents=True)
    for index, name in enumerate(('photo.jpg', 'photos/a.png', 'photos/more/b.png')):
        pictured(index).save(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert program.main(shlex.split(PUBLISH)[1:]) == 0
    (published,) = folder.rglob('*-????????.pth')
    for name in ('my_config-0123abcd.pth', 'model-0123abcd.pth'):
        (folder / name).write_bytes(published.read_bytes())
    onnx.save(exported(), folder / 'model.onnx')
    (folder / 'PATH_TO_A_CHECKOUT').symlink_to(ROOT)
    cache = folder / 'hub/checkpoints'
    cache.mkdir(parents=True)
    for name in DOWNLOADS:
        entry = zoo.find(name)
        network = mmlk.create_model(f'{entry.family}_{entry.arch}')
        torch.save(dict(model=network.state_dict()), cache / entry.url.rpartition('/')[2])
    return folder


def pictured(seed):
    """A generated picture of 64 x 96 pixels."""
    pixels = torch.randint(0, 255, (8, 12, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.byte().numpy()).resize((96, 64))


def exported():
    """A graph with the input, output and metadata of an exported segmentor; tests/commands exports."""
    image = helper.make_tensor_value_info('image', TensorProto.FLOAT, ['n', 3, 'h', 'w'])
    labels = helper.make_tensor_value_info('labels', TensorProto.INT64, ['n', 'h', 'w'])
    node = helper.make_node('ArgMax', ['image'], ['labels'], axis=1, keepdims=0)
    opset = [helper.make_opsetid('', 20)]
    model = helper.make_model(
        helper.make_graph([node], 'labels', [image], [labels]), opset_imports=opset, ir_version=10
    )
    helper.set_model_props(model, dict(mmlk=json.dumps(dict(classes=CLASSES))))
    return model


@pytest.fixture
def reader(place, monkeypatch):
    """The test runs in that folder, without a network, and declares no operator for later tests."""

    def refuse(request, *_, **__):
        raise OSError(f'no network in tests: {getattr(request, "full_url", request)}')

    monkeypatch.chdir(place)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(place / 'hub'))
    monkeypatch.setattr(download.urllib.request, 'urlopen', refuse)
    monkeypatch.setattr(download, '_WAITS', ())
    for table in ('_BACKENDS', '_ARGUMENTS'):
        monkeypatch.setattr(dispatch, table, dict(getattr(dispatch, table)))
    return place


class Parsed(Exception):
    """Raised in place of what a program would do after it has read its command line."""

    def __init__(self, namespace: argparse.Namespace):
        self.namespace = namespace


@pytest.fixture
def only_parse(monkeypatch):
    """Programs read their command line and stop."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser, *args, **kwargs):
        raise Parsed(parse_args(parser, *args, **kwargs))

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)
