"""An exported file in a test of MMEngine's runner, in the place of the network it was made of."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData

from mmlk.inference.checkpointed import TASKS
from mmlk.inference.exported import ExportedModel
from mmlk.inference.prediction import Prediction
from mmlk.registry import MODELS


def check_task(cfg: Config) -> None:
    """Raise if the exported file of a config cannot be used, or is for another task.

    Args:
        cfg: Its model is an :class:`ExportedNetwork`.

    Raises:
        ValueError: Naming the file.
    """
    file, task = cfg.model.file, TASKS.get(cfg.get('default_scope'))
    found = ExportedModel(file, 'cpu').task
    if found != task:
        raise ValueError(f'{file} is a file for {found}, the config is for {task}')


@MODELS.register_module()
class ExportedNetwork(BaseModel):
    """Predicts the pictures of a test with an exported file, each prepared as the file says.

    Args:
        file: ``.onnx`` or ``.pt2`` file that predicts.

    Attributes:
        trained_classes: Names of the classes that the file tells apart.

    Raises:
        ValueError: If the file cannot be used, see :class:`~mmlk.inference.exported.ExportedModel`.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self._model = ExportedModel(file, 'cpu')
        self.trained_classes = self._model.classes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Not there: a file is tested and not trained."""
        raise NotImplementedError('ExportedNetwork: an exported file can be tested alone')

    def test_step(self, data: dict[str, list]) -> list:
        """The samples of a batch with what was predicted in them.

        Args:
            data: ``inputs``, uint8 pictures (C, H, W), BGR or of one channel, as their files hold
                them; ``data_samples`` of MMSegmentation, MMDetection or MMPretrain.
        """
        pictures = [picture.expand(3, -1, -1).flip(0) for picture in data['inputs']]
        arrays = [picture.permute(1, 2, 0).numpy() for picture in pictures]
        fill = dict(
            segmentation=_fill_labels, detection=_fill_objects, classification=_fill_scores
        )[self._model.task]
        samples = data['data_samples']
        for sample, prediction in zip(samples, self._model.predict(arrays), strict=True):
            fill(sample, prediction)
        return samples


def _fill_labels(sample: Any, prediction: Prediction) -> None:
    labels = torch.from_numpy(prediction.labels)[None].long()
    sample.pred_sem_seg = PixelData(data=labels)


def _fill_objects(sample: Any, prediction: Prediction) -> None:
    fields = dict(
        bboxes=prediction.boxes,
        scores=prediction.scores,
        labels=prediction.box_labels,
        masks=prediction.masks,
    )
    sample.pred_instances = InstanceData(
        **{name: torch.from_numpy(value) for name, value in fields.items() if value is not None}
    )


def _fill_scores(sample: Any, prediction: Prediction) -> None:
    scores = torch.from_numpy(prediction.class_scores)
    sample.set_pred_score(scores).set_pred_label(scores.argmax())
