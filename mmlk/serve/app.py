"""The web application: a page, the list of models, and predictions of uploaded pictures."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from mmlk.data.files import first_line
from mmlk.inference.model import Model
from mmlk.inference.prediction import Prediction
from mmlk.inference.sources import decode

MAX_BYTES = 32 * 2**20
"""Largest upload."""
MAX_PIXELS = 50_000_000
"""Largest picture."""
_PAGE = Path(__file__).with_name('page.html')


class Models:
    """Models by name, each loaded when it is first asked for and kept.

    Args:
        loaders: Name to a function that loads the model.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], Model]]):
        self.names = list(loaders)
        self._loaders = dict(loaders)
        self._loaded: dict[str, Model] = {}
        # models are not made for calls from several threads, and would share the processor anyway
        self._lock = threading.Lock()

    def predict(self, name: str, image: np.ndarray, threshold: float) -> dict[str, Any]:
        """The answer for one picture.

        Args:
            name: One of ``names``.
            image: uint8 (H, W, 3), RGB.
            threshold: Least score of a box that is shown.

        Raises:
            ValueError: If there is no such model, or it cannot be loaded.
        """
        if name not in self._loaders:
            raise ValueError(f'there is no model {name!r}; there are {", ".join(self.names)}')
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self._loaders[name]()
            start = time.perf_counter()
            prediction = self._loaded[name].predict(image)[0].above(threshold)
            seconds = time.perf_counter() - start
        return dict(
            model=name,
            task=self._loaded[name].task,
            seconds=round(seconds, 3),
            found=found(prediction),
            picture=_data_url(prediction.picture()),
        )


def found(prediction: Prediction) -> list[dict[str, Any]]:
    """What a prediction holds, as rows of ``name`` and ``share`` (of the pixels) or ``score``."""
    if prediction.class_scores is not None:
        return [dict(name=row['name'], score=row['score']) for row in prediction.top()]
    if prediction.labels is not None:
        indices, counts = np.unique(prediction.labels, return_counts=True)
        rows = [
            dict(name=prediction.classes[i], share=round(float(n) / prediction.labels.size, 4))
            for i, n in zip(indices, counts, strict=True)
        ]
        return sorted(rows, key=lambda row: -row['share'])
    return [
        dict(name=prediction.classes[label], score=round(float(score), 4))
        for label, score in zip(prediction.box_labels, prediction.scores, strict=True)
    ]


def application(models: Models) -> Starlette:
    """The application.

    ``GET /`` is the page, ``GET /models`` the names, ``POST /predict?model=NAME&threshold=0.3`` takes an
    image file as its body and answers as :meth:`Models.predict`; an error is ``{"error": ...}`` with
    status 400, 413 for an upload that is too large, 404 or 405 for another address or method.
    """

    async def page(_: Request) -> Response:
        return FileResponse(_PAGE, media_type='text/html')

    async def names(_: Request) -> Response:
        return JSONResponse(models.names)

    async def predict(request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BYTES:
                return _refusal(f'the file is larger than {MAX_BYTES // 2**20} MB', 413)
        query = request.query_params
        try:
            threshold = _threshold(query.get('threshold', '0.3'))
            image = read(body)
            answer = await run_in_threadpool(
                models.predict, query.get('model', models.names[0]), image, threshold
            )
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            return _refusal(str(error), 400)
        return JSONResponse(answer)

    async def unknown(request: Request, error: HTTPException) -> Response:
        return _refusal(
            f'{request.method} {request.url.path}: {error.detail}; there are GET /, GET /models and '
            'POST /predict',
            error.status_code,
        )

    return Starlette(
        routes=[
            Route('/', page),
            Route('/models', names),
            Route('/predict', predict, methods=['POST']),
        ],
        exception_handlers={HTTPException: unknown},
    )


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f'threshold {text!r} must be a number from 0 to 1')
    return value


def read(body: bytes | bytearray) -> np.ndarray:
    """The picture in an image file, uint8 (H, W, 3), RGB, decoded as ``mmlk predict`` does.

    Raises:
        ValueError: If it is no picture, is damaged, or has too many pixels.
    """
    if not body:
        raise ValueError('the request has no body; send the bytes of an image file')
    try:
        with Image.open(io.BytesIO(body)) as picture:
            size = picture.size
    except Exception as error:  # Pillow raises anything
        raise ValueError(f'the file is no picture that can be read: {first_line(error)}') from error
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(
            f'the picture has {size[0]} x {size[1]} pixels, more than {MAX_PIXELS // 10**6} million'
        )
    try:
        return np.ascontiguousarray(decode(body)[..., ::-1])
    except ValueError as error:
        raise ValueError(f'the file is no picture that can be read: {error}') from error


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.convert('RGB').save(buffer, 'JPEG', quality=90)
    return f'data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _refusal(message: str, status: int) -> JSONResponse:
    return JSONResponse(dict(error=message), status_code=status)
