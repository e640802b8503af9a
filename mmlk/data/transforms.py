"""Pipeline steps of scope ``mmlk``: checks of what is loaded, with the file's name in the error."""

from __future__ import annotations

import warnings

from mmengine import fileio

from mmlk.data.files import image_problem, image_size
from mmlk.data.labels import LabelRule, look_at_labels
from mmlk.registry import TRANSFORMS


@TRANSFORMS.register_module()
class CheckSample:
    """Refuse a sample whose image or label file is broken, naming the file.

    Loaders accept truncated JPEGs, do not name an undecodable file, and let label values through
    that no class has, which surface later as an index error of the loss without a file name. Each
    worker process checks a file once, so only the first epoch takes longer. A label map without a pixel
    to learn from is reported by a warning.

    It stands before ``LoadImageFromFile`` in a training pipeline. In a test pipeline it stands
    directly after it, because inference helpers of MMSegmentation and MMDetection replace the first
    step. Samples without files (arrays) and without labels pass.

    How labels are read (``reduce_zero_label``, ``label_map``) is what the data set states with each
    sample. ``mmlk train`` and ``mmlk test`` fill in the other two from the heads; elsewhere,
    and where they are not given, every 8-bit value passes.

    Args:
        num_classes: Number of classes that every head has; None: not known.
        ignore_index: Label that the losses leave out.
        allow_truncated: Accept JPEGs whose end is missing.
        backend_args: File backend, as of the loading steps.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        ignore_index: int | None = 255,
        allow_truncated: bool = False,
        backend_args: dict | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.allow_truncated = allow_truncated
        self.backend_args = backend_args
        self._passed: set[str] = set()

    def __call__(self, results: dict) -> dict:
        """Return the sample as it is.

        Args:
            results: Sample with ``img_path``, and ``seg_map_path`` (label map) or ``height`` and
                ``width`` (COCO), each optional.

        Raises:
            ValueError: Naming the file and what is wrong with it.
        """
        path, label_path = results.get('img_path'), results.get('seg_map_path')
        if not path or path in self._passed:
            return results
        content = fileio.get(path, backend_args=self.backend_args)
        problem = image_problem(content)
        if problem and not (self.allow_truncated and 'JPEG is truncated' in problem):
            raise ValueError(f'CheckSample: {path}: {problem}')
        size = image_size(content)
        if label_path:
            self._check_labels(label_path, results, size)
        if size is not None:
            stated = (results.get('height', size[0]), results.get('width', size[1]))
            if stated != size:
                raise ValueError(
                    f'CheckSample: {path}: is {size[0]}x{size[1]} (height x width) while the '
                    f'annotation file says {stated[0]}x{stated[1]}'
                )
        self._passed.add(path)
        return results

    def _check_labels(self, path: str, results: dict, size: tuple[int, int] | None) -> None:
        rule = LabelRule(
            self.num_classes,
            self.ignore_index,
            bool(results.get('reduce_zero_label')),
            results.get('label_map'),
        )
        content = fileio.get(path, backend_args=self.backend_args)
        problem, ignored = look_at_labels(content, rule, size)
        if problem:
            raise ValueError(f'CheckSample: {path}: {problem}')
        if ignored:
            warnings.warn(f'CheckSample: {path}: every pixel is ignored, nothing is learnt from it')

    def __repr__(self) -> str:
        return (
            f'CheckSample(num_classes={self.num_classes}, ignore_index={self.ignore_index}, '
            f'allow_truncated={self.allow_truncated})'
        )
