"""A classifier whose head has a branch of its own for what a teacher says (DeiT, Sec. 4)."""

from __future__ import annotations

from os import PathLike

import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS as CLASSIFIERS
from torch import Tensor, nn

from mmlk.checkpoints.errors import UnusableCheckpoint
from mmlk.checkpoints.read import read_checkpoint
from mmlk.registry import MODELS


@MODELS.register_module()
class DistilledClassifier(ImageClassifier):
    """``ImageClassifier`` that learns labels with one branch and a teacher's choice with the other.

    The loss is ``(1 - alpha) * label loss + alpha * cross-entropy of the second branch against the
    teacher's most likely class``. The teacher sees the same augmented images. It is built and loaded
    by ``init_weights``, when a training starts, and is part of no checkpoint.

    Args:
        teacher: Config of the teacher, whose ``tensor`` mode gives scores of as many classes.
        teacher_checkpoint: File, URL or ``mmlk://<name>`` of its weights, in the names of the
            teacher's own network.
        alpha: Weight of the teacher, within 0 to 1.
        **classifier: Arguments of ``ImageClassifier``; the head needs ``branches``, as
            ``mmlk.TwoBranchClsHead`` has.

    Raises:
        ValueError: If weights of the teacher are not named, ``alpha`` is out of range, or the head has
            one branch only.
    """

    def __init__(
        self,
        teacher: dict,
        teacher_checkpoint: str | PathLike | None,
        alpha: float = 0.5,
        **classifier,
    ):
        super().__init__(**classifier)
        if not teacher_checkpoint:
            raise ValueError(
                'DistilledClassifier: teacher_checkpoint is missing; a teacher with random weights '
                'teaches nothing. Name its file, or use ImageClassifier to train without a teacher'
            )
        if not 0 <= alpha <= 1:
            raise ValueError(f'DistilledClassifier: alpha {alpha} must be within 0 to 1')
        if self.head is not None and not hasattr(self.head, 'branches'):
            raise ValueError(
                f'DistilledClassifier: head {type(self.head).__name__} has no branches; use '
                'mmlk.TwoBranchClsHead'
            )
        self.teacher_cfg = teacher
        self.teacher_checkpoint = teacher_checkpoint
        self.alpha = alpha
        # In a tuple, so that it is neither trained nor saved with the model.
        self._teacher: tuple[nn.Module, ...] = ()

    def init_weights(self) -> None:
        """Initialise the classifier, then build the teacher and load its weights completely.

        Raises:
            UnusableCheckpoint: If there is no such file, it is no checkpoint, or it does not cover the
                teacher.
        """
        super().init_weights()
        if not self._teacher:
            self._teacher = (self._load_teacher(),)

    def _load_teacher(self) -> nn.Module:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            teacher = CLASSIFIERS.build(self.teacher_cfg)
        try:
            state, _ = read_checkpoint(self.teacher_checkpoint)
        except (OSError, RuntimeError, ValueError) as error:
            raise UnusableCheckpoint(f'DistilledClassifier: teacher_checkpoint: {error}') from error
        faults = _load_completely(teacher, state)
        if faults:
            raise UnusableCheckpoint(
                f'DistilledClassifier: {self.teacher_checkpoint} does not fit the teacher '
                f'{self.teacher_cfg}: {"; ".join(faults)}. Name a file of this network, or another '
                'teacher'
            )
        return teacher.requires_grad_(False).eval()

    def teacher_labels(self, inputs: Tensor) -> Tensor:
        """The teacher's most likely class (N,) for normalised images (N, C, H, W).

        Raises:
            RuntimeError: If ``init_weights`` has not been called.
            UnusableCheckpoint: If the teacher tells another number of classes apart.
        """
        if not self._teacher:
            raise RuntimeError('DistilledClassifier: no teacher; call init_weights before training')
        (teacher,) = self._teacher
        with torch.no_grad():
            scores = teacher.to(inputs.device)(inputs)
        if scores.shape[1] != self.head.num_classes:
            raise UnusableCheckpoint(
                f'DistilledClassifier: the teacher tells {scores.shape[1]} classes apart and '
                f'model.head.num_classes is {self.head.num_classes}; a teacher has to know the same '
                'classes. Name another one, or train without a teacher'
            )
        return scores.argmax(1)

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Losses ``loss_labels`` and ``loss_teacher``, weighted; MMEngine logs their sum as ``loss``."""
        labels, taught = self.head.branches(self.extract_feat(inputs))
        losses = self.head._get_loss(labels, data_samples)
        losses['loss_labels'] = (1 - self.alpha) * losses.pop('loss')
        losses['loss_teacher'] = self.alpha * F.cross_entropy(taught, self.teacher_labels(inputs))
        return losses


def _load_completely(module: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Load a network that maps the names of a file itself, as TimmClassifier does; the faults."""
    try:
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # one line for each tensor of another shape, below a headline
        lines = str(error).splitlines()[1:]
        first = lines[0].strip('\t .')
        return [f'{len(lines)} tensors of another shape, first {first}']
    found = (('missing', result.missing_keys), ('without a place', result.unexpected_keys))
    return [f'{len(keys)} {what}, such as {keys[0]}' for what, keys in found if keys]
