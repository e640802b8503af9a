"""Device, precision and processes of a run, and the runner itself.

MMEngine's distributed set-up assumes GPUs: it calls ``torch.cuda.set_device`` and hands device ids
to the model wrapper, torch's SyncBN has no CPU kernel, and the mixed-precision wrapper refuses the
CPU. On a machine without a GPU the config is adapted, the gloo group is opened here, and every
departure is reported in a sentence for the log.
"""

from __future__ import annotations

import datetime
import os
import subprocess
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS

from mmlk.cli.runner import Runner

_AMP_WRAPPER = 'AmpOptimWrapper'
_PATIENCE = 1800
_SYNC_NORMS = ('SyncBN', 'MMSyncBN', 'NaiveSyncBN')

# launcher -> variables of the scheduler that torch's env:// rendezvous knows by other names
_RENDEZVOUS = {
    'pytorch': {},
    'slurm': dict(RANK='SLURM_PROCID', WORLD_SIZE='SLURM_NTASKS', LOCAL_RANK='SLURM_LOCALID'),
    'mpi': dict(
        RANK='OMPI_COMM_WORLD_RANK',
        WORLD_SIZE='OMPI_COMM_WORLD_SIZE',
        LOCAL_RANK='OMPI_COMM_WORLD_LOCAL_RANK',
    ),
}


def enable_amp(cfg: Config) -> str:
    """Train in mixed precision (``--amp``).

    Returns:
        A sentence for the log.

    Raises:
        ValueError: Without a GPU, or for an optimizer wrapper with a precision of its own.
    """
    if get_device() in ('cpu', 'mps'):
        raise ValueError(
            "--amp: mixed precision needs a GPU (MMEngine's AmpOptimWrapper refuses this device, "
            f'{get_device()!r}); leave --amp out to train in float32'
        )
    wrapper = cfg.optim_wrapper
    kind = str(wrapper.get('type', 'OptimWrapper'))
    if kind not in ('OptimWrapper', _AMP_WRAPPER):
        raise ValueError(
            f'--amp: optim_wrapper.type {kind!r} is neither OptimWrapper nor '
            f'{_AMP_WRAPPER}; set its precision in the config'
        )
    wrapper.type = _AMP_WRAPPER
    wrapper.setdefault('loss_scale', 'dynamic')
    return f'Mixed precision: {wrapper.get("dtype", "float16")}, loss scale {wrapper.loss_scale}.'


def adapt_to_device(cfg: Config) -> list[str]:
    """Change what a CPU cannot run; on any other device do nothing.

    Mixed precision becomes float32. In a distributed run SyncBN becomes BN of each process (the
    state-dict keys are the same), the group uses gloo and the model wrapper gets no device ids.

    Returns:
        One sentence per change, for the log.
    """
    if get_device() != 'cpu':
        return []
    notes = []
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type') == _AMP_WRAPPER:
        wrapper.type = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
        notes.append("No GPU: the recipe's mixed precision is replaced by float32.")
    if cfg.get('launcher', 'none') == 'none':
        return notes
    notes.append('No GPU: processes communicate through gloo.')
    if _desynchronize(cfg.model) + bool(cfg.pop('sync_bn', None)):
        notes.append(
            'No GPU: SyncBN has no CPU implementation in torch and is replaced by BN, '
            'whose statistics are those of each process.'
        )
    # The runner would otherwise build this wrapper with the local rank as device id.
    default = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = dict(cfg.get('model_wrapper_cfg') or default, device_ids=None)
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    return notes


def limit_waiting(cfg: Config) -> list[str]:
    """State how long processes wait for each other, in place; nothing for a single process.

    A process that hangs keeps the others waiting in their next exchange. After
    ``env_cfg.dist_cfg.timeout`` seconds (1800 by default) that is an error, on which the launcher
    ends all of them. The first process evaluates alone: the limit has to exceed the time for that.

    Returns:
        A sentence for the log.
    """
    if cfg.get('launcher', 'none') == 'none':
        return []
    seconds = ((cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout', _PATIENCE)
    cfg.merge_from_dict({'env_cfg.dist_cfg.timeout': seconds})
    return [
        f'Processes wait {seconds} s for each other at most, then the run ends '
        '(env_cfg.dist_cfg.timeout).'
    ]


def find_unused_parameters(cfg: Config) -> list[str]:
    """Let DDP expect parameters without a gradient where outputs of the backbone feed no head.

    Stages behind the last output do not learn (the backbone freezes them) and are no concern of DDP.
    Outputs that no head takes leave their norm, and stages behind the last one taken, without a
    gradient, at which DDP stops.

    Returns:
        A sentence for the log where ``find_unused_parameters`` was set.
    """
    model = cfg.get('model') or {}
    heads = [head for key in ('decode_head', 'auxiliary_head') for head in _listed(model.get(key))]
    indices = (model.get('backbone') or {}).get('out_indices', (0, 1, 2, 3))
    alone = cfg.get('launcher', 'none') == 'none'
    if alone or model.get('neck') or not heads or cfg.get('find_unused_parameters'):
        return []
    used = {i % len(indices) for head in heads for i in _listed(head.get('in_index', -1))}
    unused = [indices[i] for i in range(len(indices)) if i not in used]
    if not unused:
        return []
    cfg.find_unused_parameters = True
    if cfg.get('model_wrapper_cfg'):
        cfg.model_wrapper_cfg.find_unused_parameters = True
    return [
        f'No head takes output {", ".join(map(str, unused))} of the backbone: '
        'find_unused_parameters=True, which costs a search in every step; to spare it set '
        f'model.backbone.out_indices={tuple(i for i in indices if i not in unused)} and in_index of '
        'the heads.'
    ]


def norms_are_synchronised(cfg: Config) -> bool:
    """Whether SyncBN sees several processes: on GPUs, under a launcher."""
    return cfg.get('launcher', 'none') != 'none' and get_device() != 'cpu'


def open_process_group(cfg: Config) -> None:
    """Join the gloo group of a distributed run without GPUs; otherwise leave it to the runner.

    Raises:
        ValueError: If the launcher's environment variables are missing.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none' or get_device() != 'cpu' or torch.distributed.is_initialized():
        return
    for name, source in _RENDEZVOUS[launcher].items():
        if source in os.environ:
            os.environ[name] = os.environ[source]
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_slurm_host()
    os.environ.setdefault('MASTER_PORT', '29500')
    missing = [
        name
        for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR')
        if name not in os.environ
    ]
    if missing:
        raise ValueError(
            f'--launcher {launcher}: environment variables {", ".join(missing)} are '
            f'not set; start it by the scheduler, or by "torchrun --nproc-per-node=N -m mmlk ..."'
        )
    timeout = cfg.env_cfg.dist_cfg.get('timeout', _PATIENCE)
    torch.distributed.init_process_group('gloo', timeout=datetime.timedelta(seconds=timeout))


def close_process_group() -> None:
    """Leave the group of a distributed run that has ended well.

    Left to the end of the interpreter, gloo's threads now and then abort a process whose work is done,
    and the launcher reports a failed run.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def build_runner(cfg: Config, notes: list[str]) -> Runner:
    """The runner, with ``notes`` in its log after the environment and the config.

    A config that names a ``runner_type`` gets that one, as it is.
    """
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    for note in notes:
        runner.logger.info(note)
    return runner


def _first_slurm_host() -> str:
    return subprocess.run(
        ['scontrol', 'show', 'hostname', os.environ.get('SLURM_NODELIST', '')],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()[0]


def _listed(value: Any) -> list:
    """``value`` as a list; nothing for None."""
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _desynchronize(node: Any) -> int:
    """Replace synchronised norms under ``node`` in place; the number of replacements."""
    if isinstance(node, dict):
        found = node.get('type') in _SYNC_NORMS
        if found:
            node['type'] = 'BN'
        return found + sum(_desynchronize(child) for child in node.values())
    if isinstance(node, (list, tuple)):
        return sum(_desynchronize(child) for child in node)
    return 0
