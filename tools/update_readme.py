"""Write the README's results table from the metafiles, or check that it is up to date."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
BEGIN = '<!-- results:begin (tools/update_readme.py) -->'
END = '<!-- results:end -->'
HEADER = (
    '| config | data | GPUs x batch | schedule | params (M) | MACs (G) | published | source |\n'
    '|---|---|---|---|---|---|---|---|\n'
)


def rows() -> list[str]:
    """One table row per result of every model; models without a published figure say so."""
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    found = []
    for path in index['Import']:
        for model in yaml.safe_load((ROOT / path).read_text())['Models']:
            found += [row(model, result) for result in model.get('Results') or [None]]
    return found


def row(model: dict, result: dict | None) -> str:
    data = model['Metadata']
    schedule = (
        f'{data["Iterations"] // 1000}k'
        if data.get('Iterations', 0) >= 1000
        else f'{data["Iterations"]} it'
        if 'Iterations' in data
        else f'{data["Epochs"]} epochs'
    )
    amp = ', AMP' if data.get('AMP') else ''
    figures = (
        ', '.join(f'{name} {value}' for name, value in result['Metrics'].items())
        if result and result['Metrics']
        else 'none'
    )
    return ' | '.join(
        [
            f'| [{model["Name"]}]({model["Config"]})',
            data['Training Data'],
            f'{data["GPUs"]} x {data["Batch Size"] // data["GPUs"]}',
            schedule + amp,
            str(data.get('Parameters', '')),
            str(data.get('FLOPs', '')),
            figures,
            f'{result.get("Source", "") if result else "no published reference"} |',
        ]
    )


def updated(text: str) -> str:
    """``text`` with the lines between the two marks replaced by the table."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f'{before}{BEGIN}\n{HEADER}' + '\n'.join(rows()) + f'\n{END}{after}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='change nothing; fail if out of date')
    args = parser.parse_args()
    readme = ROOT / 'README.md'
    text = readme.read_text(encoding='utf-8')
    new = updated(text)
    if args.check:
        sys.exit(
            0 if new == text else 'README.md is out of date: run python tools/update_readme.py'
        )
    readme.write_text(new, encoding='utf-8')


if __name__ == '__main__':
    main()
