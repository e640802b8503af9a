"""Pipeline steps of scope ``mmlk``: checks of what is loaded, with the file's name in the error."""

from __future__ import annotations

from mmengine import fileio

from mmlk.data.classes import ADE20K_CLASSES
from mmlk.data.files import image_problem, image_size, label_problem
from mmlk.registry import TRANSFORMS


@TRANSFORMS.register_module()
class CheckSample:
    """Refuse a sample whose image or label file is broken, naming the file.

    Loaders accept truncated JPEGs, do not name an undecodable label map, and let label values
    through that no class has, which surface later as an index error of the loss without a file
    name. Each worker process checks a file once, so only the first epoch pays.

    It stands before ``LoadImageFromFile`` in a training pipeline. In a test pipeline it stands
    directly after it, because inference helpers of MMSegmentation and MMDetection replace the first
    step. Samples without files (arrays) and without labels pass.

    Args:
        max_label: Greatest value allowed in a label map before any shift; 0 means ignored.
        allow_truncated: Accept JPEGs whose end is missing.
        backend_args: File backend, as of the loading steps.
    """

    def __init__(
        self,
        max_label: int = ADE20K_CLASSES,
        allow_truncated: bool = False,
        backend_args: dict | None = None,
    ) -> None:
        self.max_label = max_label
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
        if problem and not (self.allow_truncated and 'truncated' in problem):
            raise ValueError(f'CheckSample: {path}: {problem}')
        size = image_size(content)
        if label_path:
            labels = fileio.get(label_path, backend_args=self.backend_args)
            problem = label_problem(labels, self.max_label, size)
            if problem:
                raise ValueError(f'CheckSample: {label_path}: {problem}')
        stated = (results.get('height', size[0]), results.get('width', size[1]))
        if stated != size:
            raise ValueError(
                f'CheckSample: {path}: is {size[0]}x{size[1]} (height x width) while the '
                f'annotation file says {stated[0]}x{stated[1]}'
            )
        self._passed.add(path)
        return results

    def __repr__(self) -> str:
        return f'CheckSample(max_label={self.max_label}, allow_truncated={self.allow_truncated})'
