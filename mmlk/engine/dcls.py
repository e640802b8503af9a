"""Upkeep of learnable spacings while training: positions stay in the window and may repel.

Learning rate and weight decay of positions are settings of the optimizer constructor:
``LayerDecayConstructor`` decays neither ``.P`` nor ``.SIG``, and
``paramwise_cfg=dict(lr_multipliers={'.P': 5.0})`` is the factor of the classifier's recipe. The
authors' dense-prediction code trains positions at their stage's rate: its factor of five is
overwritten before it is used.
"""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from torch import nn

from mmlk.engine.optimizers import single_wrapper
from mmlk.registry import HOOKS


@HOOKS.register_module()
class DCLSClampHook(Hook):
    """Moves positions that left the window back to its border, after every iteration.

    Outside the window an element of version ``v0`` contributes nothing and gets no gradient, so it
    could never return. The classifier's training clamps; the published dense-prediction code does
    not, and its first form saturated positions in the forward pass instead, which is the same for
    positions inside the window.

    Raises:
        RuntimeError: If the model has no layer with learnable spacings.
    """

    priority = 'ABOVE_NORMAL'  # before EMAHook, which is to average clamped positions

    def before_train(self, runner) -> None:
        """Clamp what a checkpoint may have brought."""
        self._layers = _owners(runner.model, 'DCLSClampHook')
        self._clamp()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Clamp what the optimizer moved."""
        self._clamp()

    def _clamp(self) -> None:
        for layer in self._layers:
            layer.clamp_parameters()


@HOOKS.register_module()
class DCLSRepulsionHook(Hook):
    """Adds the gradient of ``weight * R ** 2``, where ``R`` is the mean overlap of elements.

    ``R`` averages ``repulsive_loss`` over the layers that own positions, once per stage where blocks
    share them. It is logged as ``loss_repulsion`` from the start and takes part from ``begin`` on.
    The authors' classifiers use it from epoch 21; their dense-prediction code does not.

    The gradient is put into ``P.grad`` ahead of the iteration, scaled as the wrapper scales losses
    (gradient accumulation, AMP), so clipping and DDP see it as if it had been a term of the loss.

    Args:
        weight: Factor of the squared overlap.
        begin: Epoch or iteration, counted from 0, from which the term takes part.
        by_epoch: Unit of ``begin``.

    Raises:
        ValueError: If ``weight`` or ``begin`` is negative.
        RuntimeError: If the model has no layer with learnable spacings, or several optimizers.
    """

    def __init__(self, weight: float = 1.0, begin: int = 21, by_epoch: bool = True):
        if weight < 0 or begin < 0:
            raise ValueError(
                f'DCLSRepulsionHook: weight {weight} and begin {begin} must not be negative'
            )
        self.weight = weight
        self.begin = begin
        self.by_epoch = by_epoch

    def before_train(self, runner) -> None:
        """Find the layers, and check that there is one optimizer to work with."""
        single_wrapper(runner, 'DCLSRepulsionHook')
        self._layers = _owners(runner.model, 'DCLSRepulsionHook')

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Log the term, and from ``begin`` on leave its gradient for the optimizer."""
        learning = [layer for layer in self._layers if layer.P.requires_grad]
        active = (runner.epoch if self.by_epoch else runner.iter) >= self.begin and bool(learning)
        with torch.set_grad_enabled(active):
            overlap = torch.stack([layer.repulsive_loss() for layer in self._layers]).mean()
            loss = self.weight * overlap.square()
        runner.message_hub.update_scalar('train/loss_repulsion', loss.item())
        if active:
            wrapper = runner.optim_wrapper
            loss = wrapper.scale_loss(loss)
            if hasattr(wrapper, 'loss_scaler'):
                loss = wrapper.loss_scaler.scale(loss)
            positions = [layer.P for layer in learning]
            for position, grad in zip(positions, torch.autograd.grad(loss, positions), strict=True):
                position.grad = grad if position.grad is None else position.grad + grad


def _owners(model: nn.Module, hook: str) -> list[nn.Module]:
    """Layers with positions of their own, found by what they offer."""
    layers = [module for module in model.modules() if getattr(module, 'owns_positions', False)]
    if not layers:
        raise RuntimeError(
            f'{hook}: the model has no layer with learnable spacings; remove the hook '
            'or use a DCLS backbone'
        )
    return layers
