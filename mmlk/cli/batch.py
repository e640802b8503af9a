"""Effective batch size: what a run trains with, what its recipe was tuned for, and the remedy."""

from __future__ import annotations

from mmengine.config import Config


def batch_statement(cfg: Config, processes: int) -> tuple[str, bool]:
    """One paragraph on the effective batch size, and whether it departs from the recipe's.

    Args:
        cfg: Training config; ``auto_scale_lr.base_batch_size`` states the recipe's batch size.
        processes: Number of training processes, one per GPU.
    """
    per_process, accumulated = _per_process(cfg), _accumulated(cfg)
    effective = processes * per_process * accumulated
    text = (
        f'Effective batch size {effective} = {processes} process(es) x {per_process} image(s) '
        f'x {accumulated} accumulation step(s)'
    )
    scaling = cfg.get('auto_scale_lr') or {}
    recipe = scaling.get('base_batch_size')
    if recipe is None:
        return f'{text}; the config does not say what its recipe was tuned for.', False
    if effective == recipe:
        return f'{text}, as in the recipe.', False
    ratio = effective / recipe
    if scaling.get('enable'):
        return f'{text}; the recipe has {recipe}, so the rate is scaled by {ratio:g}.', False
    remedies = []
    if recipe % (processes * accumulated) == 0:
        size = recipe // (processes * accumulated)
        memory = ', if memory allows' if size > per_process else ''
        remedies.append(f'train_dataloader.batch_size={size}{memory}')
    if recipe % effective == 0:
        steps = accumulated * recipe // effective
        remedies.append(
            f'--accumulate {steps} (optim_wrapper.accumulative_counts={steps}, with '
            f'iterations and schedule stretched to match)'
        )
    remedies.append(f'--auto-scale-lr (learning rate x {ratio:g})')
    return (
        f'{text}, but learning rate and schedule of the recipe were tuned for {recipe}. '
        f'Remedy: {", or ".join(remedies)}.'
    ), True


def enable_lr_scaling(cfg: Config) -> None:
    """Scale the learning rate linearly from the recipe's batch size (``--auto-scale-lr``).

    Raises:
        ValueError: If the config states no batch size, or accumulates, which MMEngine's scaling
            does not count.
    """
    if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise ValueError(
            '--auto-scale-lr: the config states no auto_scale_lr.base_batch_size to scale from'
        )
    if _accumulated(cfg) > 1:
        raise ValueError(
            '--auto-scale-lr: MMEngine counts no accumulation steps when it scales; use either '
            'this or accumulative_counts, and set optim_wrapper.optimizer.lr by hand for both'
        )
    cfg.auto_scale_lr.enable = True


def accumulate(cfg: Config, steps: int) -> None:
    """Step the optimizer every ``steps`` iterations and stretch the schedule (``--accumulate``).

    Loops, schedulers and checkpoints that count iterations get ``steps`` times as many; those that
    count epochs stay. The optimizer then takes as many steps, at the same rates, as before.

    Raises:
        ValueError: If ``steps`` is not positive.
    """
    if steps < 1:
        raise ValueError(f'accumulate: steps {steps} must be at least 1')
    cfg.optim_wrapper.accumulative_counts = steps * _accumulated(cfg)
    if 'max_iters' in cfg.train_cfg:
        _stretch(cfg.train_cfg, ('max_iters', 'val_interval', 'val_begin'), steps)
    schedulers = cfg.get('param_scheduler') or []
    for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
        if not scheduler.get('by_epoch', True):
            _stretch(scheduler, ('begin', 'end', 'T_max', 'step_size', 'total_iters'), steps)
            if 'milestones' in scheduler:
                scheduler.milestones = [steps * milestone for milestone in scheduler.milestones]
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if not checkpoint.get('by_epoch', True):
        _stretch(checkpoint, ('interval',), steps)


def allow_single_images(cfg: Config, synchronised: bool) -> None:
    """Prepare norms for steps on one image, which leaves pooled maps one value per channel.

    Args:
        cfg: Training config; gets :class:`~mmlk.engine.SingleImageNormHook`, which acts in a step on
            one image alone: of any step of a run, or of the last of an epoch.
        synchronised: Whether norms see the images of several processes; then nothing is needed.
    """
    if not synchronised:
        hook = dict(type='mmlk.SingleImageNormHook')
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def _stretch(settings: dict, keys: tuple[str, ...], factor: int) -> None:
    for key in keys:
        if isinstance(settings.get(key), int) and settings[key] > 0:
            settings[key] *= factor


def _per_process(cfg: Config) -> int:
    loader = cfg.get('train_dataloader') or {}
    return loader.get('batch_size') or (loader.get('batch_sampler') or {}).get('batch_size') or 1


def _accumulated(cfg: Config) -> int:
    return (cfg.get('optim_wrapper') or {}).get('accumulative_counts') or 1
