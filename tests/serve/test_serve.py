"""The web page's server over HTTP, with models whose answers are known."""

import base64
import io
import json
import socket
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from mmlk.cli import program

pytest.importorskip('starlette')
uvicorn = pytest.importorskip('uvicorn')

from mmlk.commands import serve  # noqa: E402
from mmlk.serve import app  # noqa: E402
from tests.serve.conftest import png  # noqa: E402


def get(url, body=None):
    """Status and content of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body)) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_page_names_the_parts_that_it_asks_for(address):
    status, content = get(address[0] + '/')
    page = content.decode()
    assert status == 200 and page.startswith('<!doctype html>')
    assert "fetch('models')" in page and "fetch('predict?'" in page
    for part in ('model', 'threshold', 'drop', 'file', 'status', 'error', 'picture', 'found'):
        assert f'id="{part}"' in page and f"part('{part}')" in page
    assert 'http' not in page, 'the page needs another server'


def test_models_are_listed_in_their_order(address):
    status, content = get(address[0] + '/models')
    assert status == 200
    assert json.loads(content) == ['segmentation', 'classification', 'detection', 'broken']


@pytest.mark.parametrize(
    'query, found',
    [
        ('', [dict(name='ground', share=0.75), dict(name='disc', share=0.25)]),
        (
            '?model=classification',
            [
                dict(name='disc', score=0.7),
                dict(name='sky', score=0.2),
                dict(name='ground', score=0.1),
            ],
        ),
        ('?model=detection', [dict(name='sky', score=0.9)]),
        (
            '?model=detection&threshold=0.1',
            [dict(name='sky', score=0.9), dict(name='disc', score=0.2)],
        ),
    ],
)
def test_a_picture_is_predicted(address, query, found):
    status, content = get(f'{address[0]}/predict{query}', png())
    answer = json.loads(content)
    assert status == 200, answer
    assert answer['found'] == found and answer['seconds'] >= 0
    kind, _, data = answer['picture'].partition(',')
    drawn = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == 'data:image/jpeg;base64' and drawn.width >= 60 and drawn.height > 40
    # the blue picture under the yellow of the disc, and as it was beside it
    if answer['task'] == 'segmentation':
        red = np.asarray(drawn)[:40, :60, 0].astype(int)
        assert red[:, 2:12].mean() > red[:, 20:].mean() + 40


def test_a_model_is_loaded_once(address):
    url, loads = address
    for _ in range(2):
        assert get(f'{url}/predict?model=segmentation', png())[0] == 200
    assert loads.count('segmentation') == 1


@pytest.mark.parametrize(
    'query, body, status, message',
    [
        ('', lambda: b'', 400, 'the request has no body; send the bytes of an image file'),
        ('', lambda: b'no picture', 400, 'no picture that can be read'),
        ('', lambda: png()[:60], 400, 'no picture that can be read'),
        ('', lambda: png(2000, 1001), 400, '1001 x 2000 pixels, more than 2 million'),
        ('', lambda: b'x' * (2**20 + 1), 413, 'larger than 1 MB'),
        ('?model=x', png, 400, "there is no model 'x'; there are segmentation, classification"),
        ('?threshold=high', png, 400, "threshold 'high' must be a number from 0 to 1"),
        ('?threshold=7', png, 400, "threshold '7' must be a number from 0 to 1"),
        ('?threshold=nan', png, 400, "threshold 'nan' must be a number from 0 to 1"),
        ('?model=broken', png, 400, 'the checkpoint belongs to another config'),
    ],
)
def test_bad_input_is_told(address, query, body, status, message, monkeypatch):
    monkeypatch.setattr(app, 'MAX_BYTES', 2**20)
    monkeypatch.setattr(app, 'MAX_PIXELS', 2_000_000)
    got, content = get(f'{address[0]}/predict{query}', body())
    assert got == status and message in json.loads(content)['error']


@pytest.mark.parametrize(
    'path, body, status', [('/nothing', None, 404), ('/predict', None, 405), ('/models', b'x', 405)]
)
def test_other_addresses_and_methods_are_told_as_json(address, path, body, status):
    got, content = get(address[0] + path, body)
    assert got == status and 'POST /predict' in json.loads(content)['error']


def test_pictures_are_turned_as_cameras_say():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert app.read(png(exif=exif)).shape == (60, 40, 3)


@pytest.mark.parametrize(
    'words, message',
    [
        (['upernet_slak_tt_ade20k'], 'closest names: upernet_slak_t_ade20k'),
        (['absent.onnx'], "there is no file 'absent.onnx'"),
        (['fpn_recnext_m3_ade20k=absent.pth'], 'checkpoint absent.pth does not exist'),
    ],
)
def test_names_are_looked_up_before_the_server_starts(words, message):
    with pytest.raises(SystemExit, match=message):
        program.main(['serve', *words])


@pytest.mark.parametrize('port', ['used', '99999'])
def test_a_port_that_cannot_be_had_is_one_message(port, capsys):
    with socket.create_server(('127.0.0.1', 0)) as used:
        port = str(used.getsockname()[1]) if port == 'used' else port
        with pytest.raises(SystemExit, match=f'cannot listen on 127.0.0.1, port {port}: .*--port'):
            program.main(['serve', 'recnext_m3', '--port', port])
    assert not capsys.readouterr().out


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(serve, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit, match=r'starlette and uvicorn are missing: pip install "mmlk'):
        program.main(['serve', 'recnext_m3'])
