"""Training steps on one image per process, in which some maps hold a single value per channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmlk.registry import HOOKS


@HOOKS.register_module()
class SingleImageNormHook(Hook):
    """Lets a batch norm that meets one value per channel use its running statistics for that call.

    Pyramid pooling and classifiers' heads reduce an image to one pixel. A batch of one image, which
    the last one of an epoch may be, then leaves one value per channel, whose variance does not exist,
    and torch raises. With running statistics, which such a norm does not update in that step, it is
    the same affine map in training and in a test. All other norms, and all other steps, are
    untouched. The log says once that it happened.
    """

    def __init__(self) -> None:
        self._handles: list = []
        self._said = False

    def before_train_iter(
        self, runner: Any, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Put the switch around every batch norm of the model, for a step on one image."""
        if _images(data_batch) != 1:
            return
        for module in runner.model.modules():
            if isinstance(module, _BatchNorm):
                self._handles += (
                    module.register_forward_pre_hook(_use_running_statistics),
                    module.register_forward_hook(self._use_batch_statistics),
                )
        self._logger = runner.logger

    def after_train_iter(self, runner: Any, batch_idx: int, **_: Any) -> None:
        """Take the switch away."""
        while self._handles:
            self._handles.pop().remove()

    def _use_batch_statistics(
        self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
    ) -> None:
        if getattr(module, 'had_single_value', False):
            module.training = True
            module.had_single_value = False
            if not self._said:
                self._said = True
                self._logger.info(
                    'A batch of one image leaves one value per channel in a batch norm, which has no '
                    'variance: such norms use their running statistics in that step.'
                )


def _images(batch: dict | tuple | list | None) -> int | None:
    """Number of images in a batch as MMEngine's loaders collate it; None where there is none."""
    inputs = batch.get('inputs') if isinstance(batch, Mapping) else None
    return None if inputs is None else len(inputs)


def _use_running_statistics(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    if module.training and args[0].numel() == args[0].shape[1]:
        module.training = False
        module.had_single_value = True
