"""From what a user calls a model to a model that predicts."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

import torch

from mmlk.inference import names
from mmlk.inference.model import Model


def load_model(
    name_or_config: str | PathLike,
    checkpoint: str | PathLike | None = None,
    device: str | torch.device | None = None,
    *,
    tta: bool = False,
    fold: bool = True,
    cfg_options: dict | None = None,
    unsafe_pickle: bool = False,
) -> Model:
    """A model ready for :meth:`~mmlk.inference.model.Model.predict`.

    Args:
        name_or_config: Config (file, ``mmlk::name`` or bare name), name of a published model,
            checkpoint that holds its config (each that MMEngine or ``mmlk publish`` writes), or a file
            of ``mmlk export``.
        checkpoint: File, URL, ``mmlk://name``, or ``last_checkpoint`` of a work folder; None takes
            the published one.
        device: Where to compute; None takes the GPU if there is one.
        tta: Augment at test time as the config says, and merge.
        fold: Fold backbone and head for inference, which gives the same up to rounding; an exported file
            is folded already.
        cfg_options: Changes of the config, such as ``{'model.test_cfg.mode': 'whole'}``.
        unsafe_pickle: Let the checkpoint run code while it is read; only for files you trust.

    Returns:
        The model, with ``task``, ``classes``, ``palette`` and ``predict(source)``.

    Raises:
        ValueError: If the name or file is unknown, with the closest names, or does not suit.
        RuntimeError: If the checkpoint is damaged or belongs to another config.
    """
    name = fspath(name_or_config)
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if Path(name).suffix in names.EXPORTED:
        from mmlk.inference.exported import ExportedModel

        for given, flag in (
            (checkpoint, 'checkpoint'),
            (tta, 'test-time augmentation'),
            (cfg_options, 'config options'),
        ):
            if given:
                raise ValueError(f'load_model: {name} is an exported model, which takes no {flag}')
        return ExportedModel(name, device)
    config, weights = names.resolve(name, None if checkpoint is None else fspath(checkpoint))
    # these import MMEngine, which exported files do without
    from mmlk.cli.checkpoint import locate
    from mmlk.inference import checkpointed

    return checkpointed.load(config, locate(weights), device, tta, fold, unsafe_pickle, cfg_options)
