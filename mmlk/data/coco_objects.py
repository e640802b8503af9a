"""What MMDetection's ``CocoDataset`` makes of the annotations of a file, one by one."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmlk.data.coco_masks import Mask, is_number, is_numbers, judge_mask


@dataclass
class Tally:
    """What the loader does with the annotations of a file.

    Attributes:
        kept: Objects that are learnt from.
        ignored: Regions that count neither as object nor as background.
        outside: Boxes outside their image, skipped.
        without_area: Boxes or areas below one pixel, skipped.
        cut: Boxes that reach beyond their image.
        without_polygon: Masks without a polygon of three points, ignored.
        other_categories: Annotations of categories that are no class of the data set, skipped.
        problems: What cannot be used, in words.
    """

    kept: int = 0
    ignored: int = 0
    without_area: int = 0
    outside: int = 0
    cut: int = 0
    without_polygon: int = 0
    other_categories: int = 0
    problems: list[str] = field(default_factory=list)


def judge_annotations(content: dict, images: dict, identities: set, masks: bool) -> Tally:
    """What the loader does with every annotation, in its own order of questions."""
    tally = Tally()
    categories = {category['id'] for category in content['categories']}
    for annotation in content['annotations']:
        where = f'annotation {annotation["id"]}'
        image = images.get(annotation['image_id'])
        if annotation['category_id'] not in categories:
            tally.problems.append(f'{where}: unknown category id {annotation["category_id"]}')
        if image is None:
            tally.problems.append(f'{where}: unknown image id {annotation["image_id"]}')
        elif annotation.get('ignore'):
            tally.ignored += 1
        else:
            problem = _judge_box(annotation, image, tally)
            if problem is None and annotation['category_id'] not in identities:
                tally.other_categories += 1
            elif problem is None:
                problem = _judge_object(annotation, image, masks, tally)
            if problem:
                tally.problems.append(f'{where} (image {image["file_name"]}): {problem}')
    return tally


def _judge_box(annotation: dict, image: dict, tally: Tally) -> str | None:
    """A problem, '' where the loader skips the annotation for its box, None where it goes on."""
    box, area = annotation.get('bbox'), annotation.get('area')
    if not is_numbers(box) or len(box) != 4:
        return f'bbox {box!r} is not [x, y, width, height] in finite numbers'
    x, y, width, height = box
    across = min(x + width, image['width']) - max(x, 0)
    down = min(y + height, image['height']) - max(y, 0)
    if max(across, 0) * max(down, 0) == 0:
        tally.outside += 1
        return ''
    if not is_number(area):
        return f'area {area!r} is no finite number'
    if area <= 0 or width < 1 or height < 1:
        tally.without_area += 1
        return ''
    if x < -1 or y < -1 or x + width > image['width'] + 1 or y + height > image['height'] + 1:
        tally.cut += 1
    return None


def _judge_object(annotation: dict, image: dict, masks: bool, tally: Tally) -> str | None:
    mask = Mask.USED
    if masks:
        mask = judge_mask(annotation.get('segmentation'), image['height'], image['width'])
        if isinstance(mask, str):
            return mask
        if mask is Mask.ABSENT:
            return 'it has no segmentation, which LoadAnnotations(with_mask=True) needs'
        tally.without_polygon += mask is Mask.IGNORED
    ignored = bool(annotation.get('iscrowd')) or mask is Mask.IGNORED
    tally.ignored += ignored
    tally.kept += not ignored
    return None


def nothing_kept(count: int, tally: Tally) -> str:
    """Why no object is left to learn from."""
    reasons = [
        f'{number} {text}'
        for number, text in (
            (tally.ignored, 'are to be ignored (crowds, or without a polygon)'),
            (tally.outside, 'lie outside their image'),
            (tally.without_area, 'have no area or a side below one pixel'),
            (tally.other_categories, 'are of categories that are no class of the data set'),
        )
        if number
    ]
    return f'none of its {count} annotations can be learnt from: {"; ".join(reasons)}'
