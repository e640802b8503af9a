"""Reading every file that the data sets of a config name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmlk.data.files import image_problem, image_size
from mmlk.data.heads import label_rule
from mmlk.data.labels import LabelRule, look_at_labels
from mmlk.data.opened import Opened, open_datasets
from mmlk.data.pipelines import reads_labels
from mmlk.data.registered import load_samples, sample_files

_REPORT_EVERY = 2000
_PICTURES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')


def scan_datasets(cfg: Mapping, loaders: Sequence[str]) -> Iterator[tuple[bool, str]]:
    """Read the images and label maps of the data sets of a config, each file once.

    Args:
        cfg: Merged config that :func:`mmlk.data.layout.check_datasets` has passed.
        loaders: Keys of the loaders whose data sets are read.

    Yields:
        (whether it is a problem, line): what is wrong with a file, and how far the reading is.
    """
    seen: set[str] = set()
    for opened in open_datasets(cfg, loaders):
        if opened.dataset is not None:
            yield from _scan(cfg, opened, seen)


def _scan(cfg: Mapping, opened: Opened, seen: set[str]) -> Iterator[tuple[bool, str]]:
    samples = load_samples(opened.dataset, opened.settings)
    rule = None
    if hasattr(opened.dataset, 'reduce_zero_label') and reads_labels(opened.settings):
        rule = label_rule(opened.dataset, cfg)
        yield False, f'{opened.loader}: labels may be {rule.spelt()}'
    pairs = [(path, sample.get('seg_map_path')) for sample in samples for path in _images(sample)]
    pairs = [(path, label) for path, label in pairs if path not in seen]
    seen.update(path for path, _ in pairs)
    yield False, f'{opened.loader}: reading {len(pairs)} images'
    ignored = []
    for count, (path, label) in enumerate(pairs, start=1):
        content = Path(path).read_bytes()
        problem = image_problem(content, decode=True)
        if problem:
            yield True, f'{path}: {problem}'
        elif rule and label and label.lower().endswith(_PICTURES):
            problem, empty = look_at_labels(Path(label).read_bytes(), rule, image_size(content))
            if problem:
                yield True, f'{label}: {problem}'
            elif empty:
                ignored.append(label)
        if count % _REPORT_EVERY == 0:
            yield False, f'  {count} of {len(pairs)}'
    yield from _on_ignored(ignored, len(pairs), rule)


def _images(sample: dict) -> list[str]:
    return [path for kind, path in sample_files([sample]) if kind.startswith('img_path')]


def _on_ignored(
    ignored: list[str], total: int, rule: LabelRule | None
) -> Iterator[tuple[bool, str]]:
    """Single label maps without a class are common in tiled data; all of them are a mistake."""
    if not ignored:
        return
    hint = ' (reduce_zero_label leaves out the value 0)' if rule.reduce_zero_label else ''
    everything = len(ignored) == total
    yield (
        everything,
        f'{"" if everything else "warning: "}{len(ignored)} of {total} label maps hold ignored '
        f'pixels alone{hint}, nothing is learnt from them: {ignored[0]} for one',
    )
