"""Pictures of a classifier's test: each image of the data set with its true and predicted class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.hooks import Hook
from mmengine.visualization import Visualizer

from mmlk.registry import HOOKS


@HOOKS.register_module()
class ClassPicturesHook(Hook):
    """Draws every image of a test as its file shows it, with what it is and what was predicted.

    MMPretrain's ``VisualizationHook`` draws the network's input instead, with red and blue exchanged
    where a pipeline loads BGR, and gives images of equal names in different folders one file.

    Args:
        out_dir: Folder of the pictures, which get the folders of the images within the data set;
            None writes none.
        show: Show each in a window.
        wait_time: Seconds for which a window stays; 0 waits for a key.
    """

    def __init__(
        self, out_dir: str | None = None, show: bool = False, wait_time: float = 0
    ) -> None:
        self.out_dir, self.show, self.wait_time = out_dir, show, wait_time

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draw the images of a batch, see :class:`mmengine.hooks.Hook`."""
        visualizer = Visualizer.get_current_instance()
        root = str(getattr(runner.test_dataloader.dataset, 'img_prefix', '') or '')
        for sample in outputs:
            path = sample.img_path
            inside = os.path.relpath(path, root) if root else os.path.basename(path)
            name = os.path.basename(inside) if inside.startswith(os.pardir) else inside
            target = self.out_dir and Path(self.out_dir, f'{name}.png')
            if target:
                target.parent.mkdir(parents=True, exist_ok=True)
            visualizer.visualize_cls(
                image=_read(path),
                data_sample=sample,
                show=self.show,
                wait_time=self.wait_time,
                name=name,
                out_file=target and str(target),
            )


def _read(path: str) -> np.ndarray:
    """RGB array (H, W, 3) of uint8, turned as the file says."""
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(
            f'ClassPicturesHook: OpenCV cannot show {path}; test without --show and --show-dir'
        )
    return np.ascontiguousarray(image[..., ::-1])
