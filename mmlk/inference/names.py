"""What a model's name stands for: a config, and the published checkpoint that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import MappingProxyType

from mmlk.checkpoints import zoo
from mmlk.configs import config_path, config_root
from mmlk.models import names as networks

EXPORTED = ('.onnx', '.pt2')
CHECKPOINTS = ('.pth', '.pt', '.safetensors')
_METHODS = ('upernet', 'fpn', 'cascade_mask_rcnn', 'mask_rcnn')
# where the publisher's name of a file does not tell the method
_RECNEXT_METHODS = {'ade20k': 'fpn', 'coco': 'mask_rcnn'}


def dense_config(entry: zoo.Entry) -> str:
    """Name of the config that a published segmentor or detector was trained with.

    Args:
        entry: An entry of task ``ade20k`` or ``coco``.
    """
    method = next(
        (name for name in _METHODS if entry.name.startswith(name)), _RECNEXT_METHODS[entry.task]
    )
    size = entry.arch if entry.family == 'recnext' else entry.arch[0]
    return f'{method}_{entry.family}_{size}_{entry.task}'


def dense_weights() -> dict[str, str]:
    """Config name -> ``mmlk://`` name of the published checkpoint of that whole model."""
    return {
        dense_config(entry): f'{zoo.SCHEME}{entry.name}'
        for entry in zoo.ENTRIES.values()
        if entry.task in ('ade20k', 'coco')
    }


@cache
def classifier_weights() -> Mapping[str, str]:
    """Config name -> ``mmlk://`` name of the published classifier, as the metafiles say."""
    import yaml

    names = {entry.url: f'{zoo.SCHEME}{entry.name}' for entry in zoo.ENTRIES.values()}
    loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
    found = {
        model['Name']: names.get(model['Weights'], model['Weights'])
        for path in sorted((config_root() / 'metafiles').glob('*_in1k.yml'))
        for model in yaml.load(path.read_text(), loader)['Models']
        if 'Weights' in model
    }
    return MappingProxyType(found)


def classifier_config(entry: zoo.Entry) -> str | None:
    """Name of the config of a published classifier or of its copy elsewhere; None if there is none."""
    for config, weights in classifier_weights().items():
        known = zoo.find(weights.removeprefix(zoo.SCHEME))
        if (known.family, known.arch, known.data) == (entry.family, entry.arch, entry.data):
            return config
    return None


def resolve(name: str, checkpoint: str | None) -> tuple[str | None, str]:
    """Config and checkpoint behind what a user calls a model.

    Args:
        name: Config (file, ``mmlk::name`` or bare name), published model (``mmlk://name`` or its bare
            name), name of :func:`mmlk.create_model`, or a checkpoint that holds its config.
        checkpoint: File, URL or ``mmlk://`` name; None for the published one.

    Returns:
        Config file, None where the checkpoint holds it, and checkpoint.

    Raises:
        ValueError: If nothing has that name, with the closest names, or if no weights are known.
    """
    if Path(name).name == 'last_checkpoint' and Path(name).is_file():
        from mmlk.cli.checkpoint import locate  # follows the pointer

        name = locate(name)
    path, bare = Path(name), name.removeprefix('mmlk::').removesuffix('.py')
    if path.suffix in CHECKPOINTS and path.is_file():
        if checkpoint:
            raise ValueError(
                f'load_model: {name} and {checkpoint} are two checkpoints; name the config in '
                'place of the first, or leave out the second'
            )
        return None, name
    published = name.removeprefix(zoo.SCHEME)
    if published in zoo.ENTRIES and not path.is_file():
        return _published(zoo.ENTRIES[published], checkpoint)
    if networks.is_model(name) and not path.is_file():
        return _published(networks.find(name)[1], checkpoint)
    if path.suffix == '.py' and path.is_file():
        config = name
    elif (config_root() / f'{bare}.py').is_file():
        config = config_path(bare)
    else:
        raise ValueError(_unknown(name))
    checkpoint = checkpoint or dense_weights().get(bare) or classifier_weights().get(bare)
    if checkpoint is None:
        raise ValueError(
            f'load_model: no weights are published for {name}; give the checkpoint of a '
            f'training run'
        )
    return config, checkpoint


def _published(entry: zoo.Entry, checkpoint: str | None) -> tuple[str, str]:
    dense = entry.task in ('ade20k', 'coco')
    config = dense_config(entry) if dense else classifier_config(entry)
    if config is None:
        raise ValueError(
            f'load_model: no config of this package fits {entry.name} ({entry.data}); '
            f'"mmlk models" lists the configs'
        )
    return config_path(config), checkpoint or f'{zoo.SCHEME}{entry.name}'


def _unknown(name: str) -> str:
    if Path(name).suffix in EXPORTED and Path(name).is_file():
        return (
            f'load_model: {name!r} is an exported model, which stands alone; here the config or '
            'checkpoint that it was made of is wanted'
        )
    if Path(name).is_dir():
        return f'load_model: {name!r} is a folder; name a file in it, such as last_checkpoint'
    if Path(name).is_file():
        return (
            f'load_model: {name!r} is neither a config (.py) nor a checkpoint '
            f'({", ".join(CHECKPOINTS)}) nor an exported model ({", ".join(EXPORTED)})'
        )
    known = {path.stem for path in config_root().glob('*.py')} | set(zoo.ENTRIES)
    known |= set(networks.VARIANTS)
    close = get_close_matches(Path(name).stem, known, n=5, cutoff=0.4)
    hint = f'; closest names: {", ".join(close)}' if close else '; "mmlk models" lists the names'
    return f'load_model: {name!r} is neither a file nor a model of this package{hint}'
