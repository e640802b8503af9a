"""Training with one image per process, where some maps hold a single value per channel."""

from __future__ import annotations

from mmengine.hooks import Hook
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmlk.registry import HOOKS


@HOOKS.register_module()
class SingleImageNormHook(Hook):
    """Lets a batch norm that meets one value per channel use its running statistics for that call.

    Pyramid pooling reduces an image to one pixel. A batch of one image then leaves one value per
    channel, whose variance does not exist, and torch raises. With running statistics, which such a
    norm never updates, it is the same affine map in training and in a test. All other norms, and
    this one at any other input, are untouched.
    """

    def before_train(self, runner) -> None:
        """Put the switch around every batch norm of the model."""
        for module in runner.model.modules():
            if isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(_use_running_statistics)
                module.register_forward_hook(_use_batch_statistics)


def _use_running_statistics(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    if module.training and args[0].numel() == args[0].shape[1]:
        module.training = False
        module.had_single_value = True


def _use_batch_statistics(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    if getattr(module, 'had_single_value', False):
        module.training = True
        module.had_single_value = False
