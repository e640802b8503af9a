"""What training a row takes: published where somebody measured it, else computed and marked so.

Facts and their sources stand in ``configs/metafiles/costs.yml``. Memory is counted by
:mod:`mmlk.analysis.training_step` and kept in ``configs/metafiles/training_memory.json``, which
``tools/estimate_cost.py --write`` renews. Hours follow from a published speed: a training step costs
three times the inference of its images, and time is proportional to multiply-adds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import cache
from typing import Any, NamedTuple

import yaml

from mmlk.configs import config_root

MEMORY_FILE = 'metafiles/training_memory.json'
STEP = 3
"""Cost of a training step in inferences of its images: forward, and twice that backward."""
_COCO_IMAGES = 117_266
"""Images of train2017 that have objects."""
_UPERNET_IMAGES = 4
"""Images of 512x512 in the 512x2048 that multiply-adds of UperNet are given for."""


class Expected(NamedTuple):
    """What training a row takes on the number of GPUs that it was published with.

    Attributes:
        hours: Wall-clock time.
        gpus: Number and kind of the GPUs that the hours are for.
        memory: Largest allocation on one GPU in MiB.
        measured: Whether the authors measured both; otherwise both are computed.
        source: Whose figures they are, or follow from.
    """

    hours: float
    gpus: str
    memory: float
    measured: bool
    source: str


@cache
def published_costs() -> dict[str, Any]:
    """``configs/metafiles/costs.yml``."""
    path = config_root() / 'metafiles/costs.yml'
    return yaml.safe_load(path.read_text(encoding='utf-8'))


@cache
def counted_memory() -> dict[str, float]:
    """Memory of a training step by row, in MiB."""
    return json.loads((config_root() / MEMORY_FILE).read_text(encoding='utf-8'))


def expected(row: Mapping[str, Any]) -> Expected:
    """What training takes for an entry of the metafiles.

    Raises:
        ValueError: If nothing was published that it could be computed from.
    """
    costs, name = published_costs(), row['Name']
    if name in costs['Measured']:
        found = costs['Measured'][name]
        return Expected(
            found['seconds'] * iterations(row) / 3600,
            f'{row["Metadata"]["GPUs"]} x {costs["GPU of Measured"]}',
            found['memory'],
            True,
            costs['Source of Measured'],
        )
    return computed(row)


def computed(row: Mapping[str, Any]) -> Expected:
    """The same from multiply-adds and counted memory, also where it was measured.

    Raises:
        ValueError: If no published speed fits the row, or its memory was not counted.
    """
    costs, memory, name = published_costs(), counted_memory(), row['Name']
    speed = next((each for each in costs['Speeds'] if fnmatch(name, each['rows'])), None)
    if speed is None or name not in memory:
        raise ValueError(
            f'expected: {name} has no {"speed" if speed is None else "counted memory"}; add it to '
            f'configs/metafiles/{"costs.yml" if speed is None else "training_memory.json"}'
        )
    data = row['Metadata']
    images = data['Batch Size'] // data['GPUs']
    factor = 1 if speed.get('training') else STEP
    seconds = factor * images * macs(row) / speed['macs'] / speed['images']
    return Expected(
        seconds * iterations(row) / 3600,
        f'{data["GPUs"]} x {speed["GPU"]}',
        memory[name],
        False,
        costs['Sources'][speed['source']],
    )


def iterations(row: Mapping[str, Any]) -> int:
    """Iterations of a row's schedule."""
    data = row['Metadata']
    if 'Iterations' in data:
        return data['Iterations']
    return data['Epochs'] * -(-_COCO_IMAGES // data['Batch Size'])


def macs(row: Mapping[str, Any]) -> float:
    """Multiply-adds (G) of one training image: 512x512 for segmentation, 800x1280 for detection."""
    scale = _UPERNET_IMAGES if row['Name'].startswith('upernet') else 1
    return row['Metadata']['FLOPs'] / scale


def sentences(row: Mapping[str, Any]) -> list[str]:
    """Time and memory of training a row, for people."""
    found = expected(row)
    about = '' if found.measured else 'about '
    if found.measured:
        how = f'measured by the authors: {found.source}'
    else:
        how = f'computed, expect up to twice as long; from {found.source}'
    memory = (
        'measured by the authors'
        if found.measured
        else 'computed, measured rows took up to 13 % more'
    )
    return [
        f'time: {about}{found.hours:.1f} h on {found.gpus} ({how})',
        f'memory of a GPU: {about}{found.memory / 1024:.1f} GiB ({memory})',
    ]
