"""Hours and GPU memory that training a row takes: measured by the authors, or computed and marked so.

    python tools/estimate_cost.py fpn_recnext_m3_ade20k upernet_slak_t_ade20k
    python tools/estimate_cost.py --write

Without names all dense rows are listed. --write counts the memory of every row anew on torch's meta
device (a few minutes on one core) and renews configs/metafiles/training_memory.json and the table in
docs/reproduction.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from difflib import get_close_matches
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmlk
from mmlk.analysis import costs
from mmlk.cli import arguments
from mmlk.cli.config import load_config
from mmlk.cli.files import complete
from mmlk.cli.published import dense_rows
from mmlk.configs import config_root

DOCUMENT = Path(__file__).resolve().parents[1] / 'docs/reproduction.md'
BEGIN, END = '<!-- costs:begin (tools/estimate_cost.py) -->', '<!-- costs:end -->'
HEADER = '| row | GPUs | hours | memory of a GPU (GiB) |\n|---|---|---|---|\n'
SHAPES = {'mmseg': (512, 512), 'mmdet': (800, 1344)}
"""Training images: the crop; what the largest image, 800x1333, is padded to."""


def rows() -> dict[str, dict]:
    """The dense rows but those on generated data."""
    return {name: row for name, row in dense_rows().items() if not name.endswith('_mini')}


def count(row: dict) -> int:
    """Memory of a training step in MiB."""
    from mmlk.analysis.training_step import measure_step

    cfg = load_config(mmlk.config_path(row['Name']))
    images = row['Metadata']['Batch Size'] // row['Metadata']['GPUs']
    found = measure_step(cfg, images, SHAPES[cfg.default_scope])
    return round((found.kept + found.live) / 2**20)


def table() -> str:
    """The table of the documentation; what is computed has a ~."""
    lines = []
    for name, row in rows().items():
        found = costs.expected(row)
        mark = '' if found.measured else '~'
        lines.append(
            f'| {name} | {found.gpus} | {mark}{found.hours:.1f} | {mark}{found.memory / 1024:.1f} |'
        )
    return HEADER + '\n'.join(lines)


def updated(text: str) -> str:
    """``text`` with the lines between the two marks replaced by the table."""
    before, rest = text.split(BEGIN)
    return f'{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('names', nargs='*', help='rows: their configs without .py')
    parser.add_argument('--write', action='store_true', help='count anew, and renew file and table')
    args = parser.parse_args(argv)
    if args.write:
        counted = {name: count(row) for name, row in rows().items()}
        with complete(config_root() / costs.MEMORY_FILE) as partial:
            partial.write_text(json.dumps(counted, indent=1) + '\n', encoding='utf-8')
        new = updated(DOCUMENT.read_text(encoding='utf-8'))
        with complete(DOCUMENT) as partial:
            partial.write_text(new, encoding='utf-8')
        return 0
    with arguments.plain_errors('estimate_cost.py'):
        known = rows()
        for name in args.names or known:
            if name not in known:
                close = ', '.join(get_close_matches(name, known, n=4, cutoff=0.4) or known)
                raise ValueError(f'{name!r} is no dense row; close to it: {close}')
            print('\n  '.join([name, *costs.sentences(known[name])]))
    return 0


if __name__ == '__main__':
    sys.exit(main())
