"""List the configs, the published checkpoints and the networks.

mmlk models                  configs, with size, cost and published accuracy
mmlk models 'upernet_slak*'  those whose name fits a pattern
mmlk models --weights        published checkpoints, for mmlk://NAME
mmlk models --networks       names of mmlk.create_model, and the weights that it loads
"""

from __future__ import annotations

import argparse
import fnmatch
import json
from difflib import get_close_matches
from typing import Any

from mmlk.checkpoints import zoo
from mmlk.cli.arguments import plain_errors
from mmlk.configs import config_root


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument('pattern', nargs='?', default='*', help='shell pattern of names')
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument('--weights', action='store_true', help='checkpoints instead of configs')
    kinds.add_argument('--networks', action='store_true', help='networks instead of configs')
    parser.add_argument('--json', action='store_true', help='everything known, as JSON')


def run(args: argparse.Namespace) -> int:
    """Print the table; returns 1 if nothing fits the pattern."""
    with plain_errors(args.program):
        rows = _rows(args)
        found = [row for row in rows if fnmatch.fnmatch(row['name'], args.pattern)]
        if not found:
            close = get_close_matches(args.pattern, [row['name'] for row in rows], n=5, cutoff=0.4)
            hint = f'; closest names: {", ".join(close)}' if close else ''
            raise ValueError(f'no name fits {args.pattern!r}{hint}')
    print(json.dumps(found, indent=1) if args.json else table(found))
    return 0


def _rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    if args.networks:
        return network_rows()
    return weight_rows() if args.weights else config_rows()


def config_rows() -> list[dict[str, Any]]:
    """What the metafiles say of every config: name, data, parameters (M), MACs (G), metrics.

    Raises:
        ImportError: If PyYAML is missing.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError('the list of configs needs PyYAML: pip install pyyaml') from error
    # several times faster than the loader in Python, where it has been built
    loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
    root = config_root().parent
    rows = []
    for path in yaml.load((root / 'model-index.yml').read_text(), loader)['Import']:
        for model in yaml.load((root / path).read_text(), loader)['Models']:
            data, results = model['Metadata'], model.get('Results') or []
            rows.append(
                {
                    'name': model['Name'],
                    'data': data['Training Data'],
                    'params (M)': data.get('Parameters'),
                    'MACs (G)': data.get('FLOPs'),
                    'published': {k: v for result in results for k, v in result['Metrics'].items()},
                }
            )
    return rows


def weight_rows() -> list[dict[str, Any]]:
    """Every published checkpoint: name, family, arch, data, size, licence."""
    return [
        {
            'name': entry.name,
            'family': entry.family,
            'arch': entry.arch,
            'data': entry.data,
            'MB': entry.megabytes,
            'licence': entry.licence,
        }
        for entry in zoo.ENTRIES.values()
    ]


def network_rows() -> list[dict[str, Any]]:
    """Every name of :func:`mmlk.create_model`: the file that it loads, and what that was trained on."""
    from mmlk.models import names

    rows = []
    for name in names.list_models(pretrained=True):
        _, entry = names.find(name)
        rows.append({'name': name, 'tag': entry.tag, 'weights': entry.name, 'data': entry.data})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as aligned text below their headings."""
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    )


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        value = ', '.join(f'{key} {figure}' for key, figure in value.items())
    return '-' if value in (None, '') else str(value)
