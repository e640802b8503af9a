"""Backbones by the names that configs use after ``mmlk.``."""

from mmlk.backbones.inceptionnext import InceptionNeXt

__all__ = ['InceptionNeXt']
