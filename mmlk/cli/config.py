"""Reading a config for the tools: typos are refused, one data root reaches every dataset.

MMEngine merges ``--cfg-options`` blindly: a misspelt key adds an entry which nothing reads, and a
key that is only a variable of the config file (``crop_size``) has been copied to its places before
the override arrives. Both would train something else than was asked for, so both are errors here.
"""

from __future__ import annotations

import copy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from mmlk.cli.inherit import check_variables, places
from mmlk.configs import config_path, config_root

# Top-level keys that the runner takes or looks up. A table, because importing the runner to ask it
# takes the seconds that a typo should not cost.
RUNNER_KEYS = frozenset(
    {
        'auto_scale_lr',
        'custom_hooks',
        'data_preprocessor',
        'default_hooks',
        'default_scope',
        'env_cfg',
        'experiment_name',
        'launcher',
        'load_from',
        'log_level',
        'log_processor',
        'model',
        'optim_wrapper',
        'param_scheduler',
        'randomness',
        'resume',
        'test_cfg',
        'test_dataloader',
        'test_evaluator',
        'train_cfg',
        'train_dataloader',
        'val_cfg',
        'val_dataloader',
        'val_evaluator',
        'visualizer',
        'work_dir',
        'compile',
        'find_unused_parameters',
        'model_wrapper_cfg',
        'runner_type',
        'sync_bn',
        'tta_model',
        'tta_pipeline',
    }
)


def load_config(path: str, overrides: dict | None = None, work_dir: str | None = None) -> Config:
    """Read a config, apply the command line's overrides and settle the work folder.

    Args:
        path: File, or ``mmlk::name`` for a config of this package; the bare name will do where no
            file has it.
        overrides: ``key=value`` pairs of ``--cfg-options``.
        work_dir: Overrides the config's ``work_dir``; without either it is
            ``work_dirs/<stem of the file>``.

    Raises:
        ValueError: If the file does not exist or cannot be parsed, if an override is a typo, or if
            the file sets a variable of its base without effect.
    """
    file = _config_file(path)
    try:
        cfg = Config.fromfile(str(file))
    except Exception as error:  # a config is a program: anything may be raised while it runs
        raise ValueError(
            f'load_config: {path} cannot be read: {type(error).__name__}: {error}'
        ) from error
    check_variables(file, RUNNER_KEYS)
    apply_overrides(cfg, overrides or {})
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / file.stem)
    return cfg


def apply_overrides(cfg: Config, overrides: dict[str, Any]) -> None:
    """Merge overrides in place; a key that nothing reads is refused.

    ``data_root`` replaces the old root wherever it occurs: in datasets, annotation files and
    evaluators. A leading ``+`` (``+a.b=1``) adds a key without any check.

    Raises:
        ValueError: If a key is a likely typo or a mere variable of the config file.
    """
    checked = {}
    for key, value in overrides.items():
        if key == 'data_root':
            relocate_data(cfg, str(value))
            continue
        if not key.startswith('+'):
            _check_key(cfg, key)
        checked[key.lstrip('+')] = value
    for key in checked:
        _open_empty_parents(cfg, key)
    cfg.merge_from_dict(checked)


def relocate_data(cfg: Config, root: str) -> None:
    """Replace the config's top-level ``data_root`` by ``root`` in every path that starts with it.

    Raises:
        ValueError: If the config has no top-level ``data_root``.
    """
    old = cfg.get('data_root')
    if not old:
        raise ValueError(
            'relocate_data: the config has no top-level data_root; set the data_root of each '
            'dataset, for example train_dataloader.dataset.data_root'
        )
    old = old.rstrip('/')
    for key in list(cfg.keys()):
        cfg[key] = _with_prefix(cfg[key], old, root.rstrip('/') or '/')


def _config_file(path: str) -> Path:
    if path.startswith('mmlk::'):
        return Path(config_path(path[len('mmlk::') :]))
    file = Path(path)
    if file.is_file():
        return file
    named = config_root() / f'{path.removesuffix(".py")}.py'
    if path == file.name and named.is_file():
        return named
    beside = {found.name: str(found) for found in file.parent.glob('*.py')}
    packaged = {found.name: f'mmlk::{found.name}' for found in config_root().glob('*.py')}
    known = packaged | beside
    close = get_close_matches(f'{file.stem}.py', known, n=3, cutoff=0.5)
    hint = f'; close to it: {", ".join(known[name] for name in close)}' if close else ''
    raise ValueError(f'load_config: there is no config file {path!r}{hint}')


def _check_key(cfg: Config, key: str) -> None:
    """Follow a dotted key through the config as far as it exists, and judge what is left."""
    first, _, rest = key.partition('.')
    if first not in RUNNER_KEYS:
        raise ValueError(_unread_key(cfg, key))
    node = cfg.get(first)
    for part in filter(None, rest.split('.')):
        if isinstance(node, (list, tuple)):
            if not (part.isdigit() and int(part) < len(node)):
                raise ValueError(
                    f'--cfg-options {key}: {part!r} is no index of a list of {len(node)} entries'
                )
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, dict):
            close = get_close_matches(part, list(node), n=3, cutoff=0.8)
            if close:
                raise ValueError(
                    f'--cfg-options {key}: there is no {part!r} here; did you mean '
                    f'{" or ".join(close)}? To add it all the same write +{key}=...'
                )
            return
        else:
            return


def _open_empty_parents(cfg: Config, key: str) -> None:
    """Turn None into an empty dict where a key goes through it (``clip_grad.max_norm=1``)."""
    node = cfg
    for part in key.split('.')[:-1]:
        part = int(part) if isinstance(node, (list, tuple)) else part
        if isinstance(node, (dict, Config)) and part not in node:
            return
        if node[part] is None:
            node[part] = ConfigDict()
        node = node[part]


def _unread_key(cfg: Config, option: str) -> str:
    key = option.partition('.')[0]
    if key in cfg:
        found = [
            place for name in cfg if name != key for place in places(cfg[name], cfg[key], name)
        ]
        hint = f'set its places instead: {", ".join(found[:6])}' if found else 'nothing reads it'
        return (
            f'--cfg-options {option}: {key!r} is a variable of the config file, already copied '
            f'to where it is used; {hint}'
        )
    close = get_close_matches(key, RUNNER_KEYS | set(cfg.keys()), n=3, cutoff=0.6)
    hint = f'did you mean {" or ".join(close)}?' if close else 'no part of the runner reads it.'
    return f'--cfg-options {option}: unknown key; {hint} To add it all the same write +{option}=...'


def _with_prefix(node: Any, old: str, new: str) -> Any:
    if isinstance(node, str):
        return new + node[len(old) :] if node == old or node.startswith(f'{old}/') else node
    if isinstance(node, dict):
        for key in list(node.keys()):
            node[key] = _with_prefix(node[key], old, new)
        return node
    if isinstance(node, (list, tuple)):
        return type(node)(_with_prefix(child, old, new) for child in node)
    return node


def drop_pretrained(model: ConfigDict) -> ConfigDict:
    """A copy of a model's settings that neither downloads nor loads weights when it is built."""
    model = copy.deepcopy(model)
    backbone = model.get('backbone') or {}
    for settings in (model, backbone, backbone.get('network') or {}):
        settings.pop('pretrained', None)
        settings.pop('init_cfg', None)
    return model
