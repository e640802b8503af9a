"""Write the model zoo (docs/zoo.md, docs/zoo.json) from the metafiles, or check that it is up to date.

    python tools/update_zoo.py
    python tools/update_zoo.py --check

Published figures come from configs/metafiles, weights from mmlk.checkpoints.zoo, speed from
docs/benchmarks, and the verdict of the audit from the published facts and their known deviations,
which tools/audit.py compares with our configs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from mmlk.analysis.curves import published_runs
from mmlk.checkpoints import zoo
from mmlk.cli.published import published_facts

ROOT = Path(__file__).resolve().parents[1]
PAGE, DATA = ROOT / 'docs/zoo.md', ROOT / 'docs/zoo.json'
BEGIN, END = '<!-- zoo:begin (tools/update_zoo.py) -->', '<!-- zoo:end -->'
CLASSIFIERS = ROOT / 'docs/benchmarks/classifiers_cpu_2threads.json'
TASKS = {'ADE20K': 'segmentation', 'COCO': 'detection', 'ImageNet-1K': 'classification'}
FAMILIES = {
    'InceptionNeXt': 'inceptionnext',
    'SLaK': 'slak',
    'DCLS-ConvNeXt': 'dcls_convnext',
    'RecNeXt': 'recnext',
}
NOT_MEASURED = 'not measured'
COLUMNS = (
    'config',
    'task',
    'family',
    'size',
    'params (M)',
    'MACs (G)',
    'published',
    'CPU (images/s)',
    'GPU',
    'weights',
    'keys',
    'licence',
    'audit',
    'log',
    'data',
    'training',
)


def zoo_rows() -> list[dict[str, Any]]:
    """Everything that is known of every config of the metafiles, one entry each.

    Returns:
        ``name``, ``config`` (path), ``task``, ``family``, ``size``, ``data``, ``gpus``, ``batch`` (over
        all of them), ``schedule``, ``parameters`` (M), ``macs`` (G), ``results`` (metrics and source),
        ``cpu_images_per_second`` (inference; None: not measured), ``gpu_images_per_second`` (None),
        ``weights`` (name, what the file holds, whose keys, licence), ``audit`` (facts as published,
        deviations with a reason; None where nothing was published) and ``log`` (source of the authors'
        training log, whose curve this package has; None where there is none).
    """
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    facts, speeds, logs = published_facts(), cpu_speeds(), published_runs()
    models = [
        model
        for path in index['Import']
        for model in yaml.safe_load((ROOT / path).read_text())['Models']
    ]
    return [
        dict(_row(model, facts, speeds), log=logs.get(model['Name'], {}).get('source'))
        for model in models
    ]


def _row(model: dict, facts: dict, speeds: dict[str, float]) -> dict[str, Any]:
    name, data = model['Name'], model['Metadata']
    family = FAMILIES[model['In Collection']]
    size = re.split('_(?:in1k|ade20k|coco)', name.split(f'{family}_')[1])[0]
    size = re.sub(r'_without_distill|_\d+e$', '', size)
    task = TASKS.get(data['Training Data']) or _generated_task(name)
    speed = speeds.get(f'{family}_{size}') if task == 'classification' else None
    return dict(
        name=name,
        config=model['Config'],
        task=task,
        family=model['In Collection'],
        size=size,
        data=data['Training Data'],
        gpus=data['GPUs'],
        batch=data['Batch Size'],
        schedule=_schedule(data),
        parameters=data.get('Parameters'),
        macs=data.get('FLOPs'),
        results=[
            dict(metrics=result['Metrics'], source=result['Source'])
            for result in model.get('Results') or []
            if result['Metrics']
        ],
        cpu_images_per_second=speed,
        gpu_images_per_second=None,
        weights=_weights(model, facts['Checkpoints']),
        audit=_verdict(name, facts),
    )


def _generated_task(name: str) -> str:
    """Task of a demonstration on generated data, by the layout of data that its name ends in."""
    return next(
        task
        for layout, task in zip(('ade20k', 'coco', 'in1k'), TASKS.values())
        if f'_{layout}_mini' in name
    )


def _schedule(data: dict) -> str:
    amp = ', AMP' if data.get('AMP') else ''
    if 'Epochs' in data:
        return f'{data["Epochs"]} epochs{amp}'
    steps = data['Iterations']
    return (f'{steps // 1000}k iterations' if steps >= 1000 else f'{steps} iterations') + amp


def cpu_speeds() -> dict[str, float]:
    """Images per second of our folded classifiers on two threads, in their better memory layout."""
    found: dict[str, float] = {}
    for row in json.loads(CLASSIFIERS.read_text())['rows']:
        if row['mode'] == 'infer':
            ours = [each for name, each in row['results'].items() if name.startswith('ours')]
            found[row['classifier']] = round(max(each['images_per_second'] for each in ours), 2)
    return found


def _weights(model: dict, checkpoints: dict[str, str]) -> list[dict[str, str]]:
    """Files of the zoo for a model: the whole network where published, else that of its backbone."""
    name, source = model['Name'], model.get('Weights')
    whole = name in checkpoints or '_in1k' in name
    if name in checkpoints:
        first = zoo.find(checkpoints[name])
    elif source is None:
        return []
    elif source.startswith(zoo.SCHEME):
        first = zoo.find(source.removeprefix(zoo.SCHEME))
    else:
        first = next(each for each in zoo.ENTRIES.values() if each.url == source)
    same = [
        each
        for each in zoo.ENTRIES.values()
        if (each.family, each.arch, each.task, each.data)
        == (first.family, first.arch, first.task, first.data)
    ]
    return [
        dict(
            name=f'{zoo.SCHEME}{each.name}',
            holds='whole network' if whole else 'backbone',
            keys="timm's" if 'timm form' in each.note else "authors'",
            licence=each.licence,
        )
        for each in (same if whole else [first])
    ]


def _verdict(name: str, facts: dict) -> dict[str, int] | None:
    """How many published facts the config repeats, and how many it changes for a known reason."""
    if name not in facts['Rows']:
        return None
    published = [fact for fact in facts['Rows'][name] if fact != 'source']
    explained = {
        each['fact'] for each in facts['Deviations'] if re.fullmatch(each['rows'], name)
    } & set(published)
    return dict(same=len(published) - len(explained), explained=len(explained))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [COLUMNS, ('---',) * len(COLUMNS), *map(_cells, rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _cells(row: dict[str, Any]) -> list[str]:
    published = [
        f'{", ".join(f"{name} {value}" for name, value in each["metrics"].items())} ({each["source"]})'
        for each in row['results']
    ]
    audit, speed = row['audit'], row['cpu_images_per_second']
    files = row['weights']
    return [
        f'[{row["name"]}](../{row["config"]})',
        row['task'],
        row['family'],
        row['size'],
        _number(row['parameters']),
        _number(row['macs']),
        '<br>'.join(published) or 'nothing published',
        _number(speed) or NOT_MEASURED,
        NOT_MEASURED,
        '<br>'.join(f'`{each["name"]}`, {each["holds"]}' for each in files) or 'none',
        ',<br>'.join(dict.fromkeys(each['keys'] for each in files)),
        ', '.join(dict.fromkeys(each['licence'] for each in files)),
        f'{audit["same"]} facts as published, {audit["explained"]} explained' if audit else '',
        '[curve](reproduction.md#follow-it)' if row['log'] else '',
        row['data'],
        f'{row["gpus"]} x {row["batch"] // row["gpus"]}, {row["schedule"]}',
    ]


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:g}'


def files() -> dict[Path, str]:
    """What the page and the data file have to hold."""
    rows = zoo_rows()
    before, rest = PAGE.read_text(encoding='utf-8').split(BEGIN)
    page = f'{before}{BEGIN}\n\n{table(rows)}\n\n{END}{rest.split(END)[1]}'
    return {PAGE: page, DATA: json.dumps(rows, indent=1, ensure_ascii=False) + '\n'}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--check', action='store_true', help='change nothing; fail if out of date')
    args = parser.parse_args(argv)
    for path, content in files().items():
        if args.check and (not path.is_file() or path.read_text(encoding='utf-8') != content):
            sys.exit(f'{path.relative_to(ROOT)} is out of date: run python tools/update_zoo.py')
        if not args.check:
            path.write_text(content, encoding='utf-8')


if __name__ == '__main__':
    main()
