"""Pictures of a test: each image of the data set with what it is and what was predicted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine import fileio
from mmengine.hooks import Hook
from mmengine.visualization import Visualizer

from mmlk.registry import HOOKS


@HOOKS.register_module()
class PicturesHook(Hook):
    """Draws every image of a test as its file shows it, with what it is and what was predicted.

    The hooks of MMSegmentation, MMDetection and MMPretrain give images of equal names in different
    folders one file; that of MMPretrain draws the network's input, with red and blue exchanged where a
    pipeline loads BGR.

    Args:
        out_dir: Folder of the pictures, which get the paths of the images below the folder that all
            have in common; None writes none.
        show: Show each in a window.
        wait_time: Seconds for which a window stays; 0 waits for a key.
        score_thr: Least score of a drawn box.
        backend_args: Where files are read from, as MMEngine takes it.
    """

    def __init__(
        self,
        out_dir: str | None = None,
        show: bool = False,
        wait_time: float = 0,
        score_thr: float = 0.3,
        backend_args: dict | None = None,
    ) -> None:
        self.out_dir, self.show, self.wait_time = out_dir, show, wait_time
        self.score_thr, self.backend_args = score_thr, backend_args
        self._root = os.sep

    def before_test_epoch(self, runner: Any) -> None:
        """Find what the paths of all images begin with, see :class:`mmengine.hooks.Hook`."""
        dataset = runner.test_dataloader.dataset
        tell = getattr(dataset, 'get_data_info', None)  # a plain data set of torch has none
        infos = map(tell, range(len(dataset))) if tell else ()
        paths = [os.path.abspath(info['img_path']) for info in infos if 'img_path' in info]
        if paths:
            self._root = os.path.commonpath(map(os.path.dirname, paths))

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draw the images of a batch, see :class:`mmengine.hooks.Hook`."""
        visualizer = Visualizer.get_current_instance()
        for sample in outputs:
            inside = os.path.relpath(os.path.abspath(sample.img_path), self._root)
            target = self.out_dir and Path(self.out_dir, f'{inside}.png')
            if target:
                target.parent.mkdir(parents=True, exist_ok=True)
            name = inside.replace(os.sep, '-')
            options = dict(data_sample=sample, name=name, out_file=target and str(target))
            options.update(image=self._read(sample.img_path), show=self.show)
            if hasattr(visualizer, 'visualize_cls'):
                visualizer.visualize_cls(wait_time=self.wait_time, **options)
                continue
            if 'pred_instances' in sample:
                options.update(pred_score_thr=self.score_thr)
            visualizer.add_datasample(wait_time=self.wait_time, **options)

    def _read(self, path: str) -> np.ndarray:
        """RGB array (H, W, 3) of uint8, turned as the file says."""
        content = np.frombuffer(fileio.get(path, backend_args=self.backend_args), np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(
                f'PicturesHook: OpenCV cannot show {path}; test without --show and --show-dir'
            )
        return np.ascontiguousarray(image[..., ::-1])
