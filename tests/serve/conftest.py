"""A server whose models give known answers, and pictures for it."""

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from mmlk.inference.model import Model

pytest.importorskip('starlette')
uvicorn = pytest.importorskip('uvicorn')

from mmlk.serve import app  # noqa: E402

CLASSES, PALETTE = ('ground', 'disc', 'sky'), [(90, 60, 30), (250, 200, 40), (80, 160, 250)]


class Fixed(Model):
    """Predicts the same for every picture: disc in the left quarter, ground elsewhere."""

    def _prepare(self, image):
        return image, image.shape

    def _forward(self, samples):
        height, width = samples[0].shape[:2]
        if self.task == 'segmentation':
            labels = np.zeros((height, width), np.int32)
            labels[:, : width // 4] = 1
            return [dict(labels=labels)]
        if self.task == 'classification':
            return [dict(class_scores=np.array([0.1, 0.7, 0.2]))]
        boxes = np.array([[0, 0, width / 2, height], [1, 1, 5, 5]], np.float32)
        return [dict(boxes=boxes, scores=np.array([0.9, 0.2]), box_labels=np.array([2, 1]))]


def broken():
    raise RuntimeError('the checkpoint belongs to another config')


@pytest.fixture(scope='module')
def address():
    loads = []

    def loader(task):
        def load():
            loads.append(task)
            return Fixed(task, CLASSES, PALETTE)

        return load

    models = {task: loader(task) for task in ('segmentation', 'classification', 'detection')}
    application = app.application(app.Models({**models, 'broken': broken}))
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level='error'))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    address = f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}'
    yield address, loads
    server.should_exit = True
    thread.join()


def png(height=40, width=60, **options):
    buffer = io.BytesIO()
    Image.new('RGB', (width, height), (10, 120, 200)).save(buffer, 'PNG', **options)
    return buffer.getvalue()
