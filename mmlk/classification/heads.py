"""Heads as MMPretrain's classifiers take them: scores, losses, predictions."""

from __future__ import annotations

import logging

from mmengine.logging import print_log
from mmpretrain.models.heads import ClsHead

from mmlk.heads import BatchNormLinearHead, Head, MlpHead, NormLinearHead, TwoBranchHead
from mmlk.registry import MODELS


class _LoggingHead(Head):
    """Writes what loading has to say into the log of the run."""

    def _warn(self, message: str) -> None:
        print_log(message, logger='current', level=logging.WARNING)


@MODELS.register_module()
class MlpClsHead(_LoggingHead, MlpHead, ClsHead):
    """InceptionNeXt's head, see :class:`~mmlk.heads.networks.MlpHead`.

    Args:
        in_channels: Channels of the backbone's last map.
        num_classes: Number of classes.
        dropout: Probability of dropping a feature before the last layer.
        loss: Loss of the scores; cross-entropy by default.
        topk: Ranks of the training accuracy.
        cal_acc: Log the training accuracy, which needs labels that nothing has mixed.
        init_cfg: MMEngine initialisation, besides the authors'.
    """


@MODELS.register_module()
class NormLinearClsHead(_LoggingHead, NormLinearHead, ClsHead):
    """SLaK's, DCLS-ConvNeXt's and UniRepLKNet's head, see :class:`~mmlk.heads.networks.NormLinearHead`.

    Args:
        in_channels: Channels of the backbone's last map.
        num_classes: Number of classes.
        loss: As in :class:`MlpClsHead`, like the following.
        topk: Ranks of the training accuracy.
        cal_acc: Log the training accuracy.
        init_cfg: MMEngine initialisation.
    """


@MODELS.register_module()
class BatchNormLinearClsHead(_LoggingHead, BatchNormLinearHead, ClsHead):
    """RepLKNet's head, see :class:`~mmlk.heads.networks.BatchNormLinearHead`.

    Args:
        in_channels: Channels of the backbone's last map.
        num_classes: Number of classes.
        loss: As in :class:`MlpClsHead`, like the following.
        topk: Ranks of the training accuracy.
        cal_acc: Log the training accuracy.
        init_cfg: MMEngine initialisation.
    """


@MODELS.register_module()
class TwoBranchClsHead(_LoggingHead, TwoBranchHead, ClsHead):
    """RecNeXt's head, see :class:`~mmlk.heads.networks.TwoBranchHead`.

    Without a teacher the loss is that of the branches' mean, as in the authors' plain recipe.

    Args:
        in_channels: Channels of the backbone's last map.
        num_classes: Number of classes.
        loss: As in :class:`MlpClsHead`, like the following.
        topk: Ranks of the training accuracy.
        cal_acc: Log the training accuracy.
        init_cfg: MMEngine initialisation.
    """
