"""Backbones by the names that configs use after ``mmlk.``."""

from mmlk.backbones.inceptionnext import InceptionNeXt
from mmlk.backbones.slak import SLaK

__all__ = ['InceptionNeXt', 'SLaK']
