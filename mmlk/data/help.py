"""What to say to somebody whose ADE20K or COCO is not found: layout, source and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_ADE20K_HELP = """\
Expected layout:
    {root}/
        images/training/*.jpg         images/validation/*.jpg
        annotations/training/*.png    annotations/validation/*.png
Source: the 2016 scene parsing challenge release (20,210 + 2,000 images),
    http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip
    The full ADE20K data set is another release, with other folders and labels; it does not fit.
    the tool prepare_data of a checkout (argument ade20k) downloads and unpacks it.
Remedy: --cfg-options data_root=PATH, or set MMLK_ADE20K_ROOT=PATH (configs ending in _mini:
    MMLK_MINI_ROOT=PATH) in the environment;
    or generate scenes: mmlk generate-data PATH --format ade20k"""

_COCO_HELP = """\
Expected layout:
    {root}/
        train2017/*.jpg    val2017/*.jpg
        annotations/instances_train2017.json    annotations/instances_val2017.json
Source: COCO 2017 from https://cocodataset.org/#download (2017 Train images, 2017 Val images,
    2017 Train/Val annotations); the tool prepare_data of a checkout (argument coco) unpacks them.
Remedy: --cfg-options data_root=PATH, or set MMLK_COCO_ROOT=PATH (configs ending in _mini:
    MMLK_MINI_ROOT=PATH) in the environment;
    or generate scenes: mmlk generate-data PATH --format coco"""

_HELP = {'ADE20KDataset': _ADE20K_HELP, 'CocoDataset': _COCO_HELP}


def advice(settings: Mapping) -> str:
    """Lines to add to an error about a data set; empty for data sets of one's own.

    Args:
        settings: Entry of the data set in the config.
    """
    kind, root = settings.get('type', ''), settings.get('data_root')
    help_text = _HELP.get(str(kind).rsplit('.', 1)[-1])
    if help_text is _COCO_HELP and '2017' not in str(settings.get('ann_file')):
        return ''
    if help_text is None or root is None:
        return ''
    return f'\n{_near_miss(Path(root))}{help_text.format(root=root)}'


def _near_miss(root: Path) -> str:
    """A sentence on a root that is almost right."""
    if (root / 'ADEChallengeData2016' / 'images').is_dir():
        return f'Note: {root / "ADEChallengeData2016"} looks like the folder that is meant.\n'
    if (root / 'index_ade20k.pkl').exists() or (root / 'images' / 'ADE').is_dir():
        return f'Note: {root} looks like the full ADE20K data set, which is the other release.\n'
    return ''
