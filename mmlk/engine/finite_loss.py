"""Training stops where its loss is no number any more."""

from __future__ import annotations

import math

import torch
from mmengine.hooks import Hook, LoggerHook
from mmengine.optim import AmpOptimWrapper
from torch import nn

from mmlk.engine.optimizers import wrappers
from mmlk.registry import HOOKS

_DEFAULT_INTERVAL = 10  # LoggerHook's own


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Raises within the logging interval after a loss became NaN or infinite.

    A loss that is no number leaves weights that are none, and the rest of the run is lost time. No
    checkpoint is saved after such an iteration either, whatever the interval. In mixed precision a
    single overflow is harmless, since the scaler skips the step: there the hook raises only once
    weights are affected, and warns before that.

    Args:
        interval: Iterations between two looks at the loss; by default the interval of the
            ``LoggerHook``. A look waits for the device.

    Raises:
        ValueError: If ``interval`` is not positive.
        RuntimeError: While training, with the iteration, the parts of the loss and the remedy.
    """

    priority = 'VERY_HIGH'  # before any hook that averages or saves the weights

    def __init__(self, interval: int | None = None):
        if interval is not None and interval < 1:
            raise ValueError(f'FiniteLossHook: interval {interval} must be at least 1')
        self.interval = interval
        self._losses: dict = {}

    def before_train(self, runner) -> None:
        """Take over the interval of the log."""
        if self.interval is None:
            found = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
            self.interval = found[0] if found else _DEFAULT_INTERVAL

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Look at the loss, every ``interval`` iterations and after the last one."""
        # detached: what is kept for a checkpoint must not keep the graph
        self._losses = {
            name: value.detach() if isinstance(value, torch.Tensor) else value
            for name, value in (outputs or {}).items()
        }
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            self._check(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Look at the loss of the iteration before a checkpoint, so that none holds its damage."""
        self._check(runner)

    def _check(self, runner) -> None:
        losses, self._losses = self._losses, {}
        if 'loss' not in losses or math.isfinite(losses['loss']):
            return
        parts = ', '.join(f'{name} {float(value):g}' for name, value in losses.items())
        found = f'FiniteLossHook: the loss is no number at iteration {runner.iter + 1} ({parts})'
        scaled = any(isinstance(wrapper, AmpOptimWrapper) for wrapper in wrappers(runner))
        if scaled and _are_finite(runner.model):
            runner.logger.warning(
                f'{found}; the weights are still finite, the scaler skips such steps'
            )
            return
        raise RuntimeError(
            f'{found}. Continue from the last checkpoint (--resume) with a lower '
            'optim_wrapper.optimizer.lr, a longer warm-up or optim_wrapper.clip_grad.max_norm=1.0; '
            "in mixed precision, float32 or dtype='bfloat16'. If it happens at once, look for images "
            'or labels that are no numbers (mmlk check-data)'
        )


@torch.no_grad()
def _are_finite(model: nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())
