"""A training checkpoint as a small file that says what it is.

The file holds plain tensors and, under ``meta``, plain values only, so that it reads without
running code. ``dataset_meta`` and ``cfg`` are where MMEngine's inferencers look for class names and
the config; a file without them makes them guess classes from a list of data sets.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import mmlk
from mmlk.checkpoints.fetch import sha256_of
from mmlk.cli.files import partial_file, write_by
from mmlk.inference.checkpointed import network_and_classes, read_whole

# What belongs to the run and its machine, not to the model.
_RUN_KEYS = ('work_dir', 'load_from', 'resume', 'launcher', 'experiment_name')
_DISTRIBUTIONS = ('torch', 'mmengine', 'mmcv', 'mmsegmentation', 'mmdet', 'mmdetection')


def publish(
    checkpoint: str,
    out: Path,
    config: str | None = None,
    name: str | None = None,
    metrics: dict[str, float] | None = None,
    licence: str = '',
    unsafe_pickle: bool = False,
) -> Path:
    """Write ``out/<name>-<first 8 digits of its SHA-256>.pth``.

    Args:
        checkpoint: File of a training run.
        out: Folder of the result.
        config: Config of the model; None takes the one inside the checkpoint.
        name: Name of the file; by default that of the config or the experiment.
        metrics: Measured accuracy, such as ``{'mIoU': 47.6}``; None keeps that of a published file.
        licence: Licence of the weights, an SPDX identifier; empty keeps that of a published file.
        unsafe_pickle: Let the checkpoint run code while it is read.

    Returns:
        The file.

    Raises:
        ValueError: If there is no config, or its classes do not fit the model.
        RuntimeError: If the checkpoint is damaged or does not cover the model.
    """
    network, cfg, classes = network_and_classes(config, checkpoint, unsafe_pickle)
    state, meta = read_whole(checkpoint, unsafe_pickle)
    for key in _RUN_KEYS:
        cfg.pop(key, None)
    classes = dict(
        classes=list(classes['classes']),
        palette=[[int(part) for part in colour] for colour in classes['palette']],
    )
    described = dict(
        dataset_meta=classes,
        cfg=cfg.pretty_text,
        metrics={
            key: float(value) for key, value in (metrics or meta.get('metrics') or {}).items()
        },
        licence=licence or meta.get('licence') or '',
        versions=_versions(),
        epoch=meta.get('epoch'),
        iter=meta.get('iter'),
    )
    stem = name or _name(checkpoint, config, meta)
    # the network's own state dict, so that a foreign file is published under the keys of this package
    tensors = network.state_dict()
    for key in [key for key in tensors if key.startswith('auxiliary_head') and key not in state]:
        del tensors[key]  # random: a published file may lack what serves training alone
    return _write(dict(state_dict=tensors, meta=described), out, stem)


def _name(checkpoint: str, config: str | None, meta: dict[str, Any]) -> str:
    """Stem of the published file: config, else experiment without its time, else checkpoint."""
    if config is not None:
        return Path(config.removeprefix('mmlk::')).stem
    experiment = re.sub(r'_\d{8}_\d{6}$', '', str(meta.get('experiment_name') or ''))
    # The checksum of a file that is published again is another.
    return experiment or re.sub(r'-[0-9a-f]{8}$', '', Path(checkpoint).stem)


def _versions() -> dict[str, str]:
    found = {'mmlk': mmlk.__version__}
    for name in _DISTRIBUTIONS:
        for distribution in (name, f'onedl-{name}'):
            try:
                found[distribution] = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
    return found


def _write(content: dict[str, Any], out: Path, stem: str) -> Path:
    """Write, read back as a stranger would, and name the file after its checksum."""
    with partial_file(out / f'{stem}.pth') as partial:
        write_by(lambda file: torch.save(content, file), partial)
        again = torch.load(partial, map_location='cpu', weights_only=True)
        if again['meta'] != content['meta']:
            raise RuntimeError(f'publish: the metadata of {partial} changed while it was written')
        return partial.rename(out / f'{stem}-{sha256_of(partial)[:8]}.pth')
