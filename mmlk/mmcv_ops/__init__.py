"""MMCV's operators for detection where this MMCV has none compiled.

MMCV keeps its operators in one compiled module, ``mmcv._ext``, which ``mmcv-lite`` and an
``onedl-mmcv`` that was installed without a compiler lack. Mask R-CNN and Cascade R-CNN use two parts
of it, suppression of boxes and RoIAlign, and torchvision has both compiled. :func:`install`, which
``import mmlk`` calls, lets Python answer ``import mmcv._ext`` with `mmlk.mmcv_ops.extension` where
there is no compiled one. Compiled operators stay in use; they are guarded against maps that are not
contiguous in memory, which they read wrongly and without an error (mmcv#2203).

``MMLK_MMCV_OPS=torchvision`` in the environment uses torchvision's although compiled ones are there.
"""

from mmlk.mmcv_ops.importing import install, source

__all__ = ['install', 'source']
