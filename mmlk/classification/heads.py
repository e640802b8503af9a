"""Heads as MMPretrain's classifiers take them: scores, losses, predictions, and careful loading."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from mmengine.logging import print_log
from mmpretrain.models.heads import ClsHead
from torch import Tensor

from mmlk.checkpoints.classifiers import START_FROM_OTHER_TASK
from mmlk.checkpoints.keymaps import is_counter
from mmlk.heads import Head, MlpHead, NormLinearHead, TwoBranchHead
from mmlk.registry import MODELS


class _LoudHead(Head):
    """Refuses a file without the head; says which layers another number of classes leaves new."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._register_load_state_dict_pre_hook(_check_loaded_head, with_module=True)


@MODELS.register_module()
class MlpClsHead(_LoudHead, MlpHead, ClsHead):
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
class NormLinearClsHead(_LoudHead, NormLinearHead, ClsHead):
    """SLaK's and DCLS-ConvNeXt's head, see :class:`~mmlk.heads.networks.NormLinearHead`.

    Args:
        in_channels: Channels of the backbone's last map.
        num_classes: Number of classes.
        loss: As in :class:`MlpClsHead`, like the following.
        topk: Ranks of the training accuracy.
        cal_acc: Log the training accuracy.
        init_cfg: MMEngine initialisation.
    """


@MODELS.register_module()
class TwoBranchClsHead(_LoudHead, TwoBranchHead, ClsHead):
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


def _check_loaded_head(
    module: Head, state_dict: dict[str, Tensor], prefix: str, metadata: Mapping, *_
) -> None:
    """Before any load: every key in its shape, or the class layers alone in another width."""
    if module.deployed:
        return
    own = module.state_dict()
    given = {
        key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)
    }
    if not own.keys() & given.keys():
        raise ValueError(
            f'{type(module).__name__}: the file has no such head; {START_FROM_OTHER_TASK}'
        )
    missing = [key for key in own if key not in given and not is_counter(key)]
    resized = [key for key in own if key in given and given[key].shape != own[key].shape]
    if missing or not all(
        _differs_in_classes(module, key, given[key], own[key]) for key in resized
    ):
        problems = [f'{key} is missing' for key in missing] + [
            f'{key} is {tuple(given[key].shape)} in the file, {tuple(own[key].shape)} in the module'
            for key in resized
        ]
        raise ValueError(
            f'{type(module).__name__}: the file does not cover the head: '
            f'{"; ".join(problems[:3])} ({len(problems)} in all); choose the file of this variant'
        )
    for key in resized:
        del state_dict[prefix + key]
    if resized:
        print_log(
            f'{type(module).__name__}: the file is for {len(given[resized[0]])} classes, the module '
            f'for {module.num_classes}: {", ".join(resized)} keep their initial values',
            logger='current',
            level=logging.WARNING,
        )


def _differs_in_classes(module: Head, key: str, theirs: Tensor, own: Tensor) -> bool:
    """Whether a class layer has another number of classes, and nothing else is different."""
    return key.rpartition('.')[0] in module.class_layers and theirs.shape[1:] == own.shape[1:]
