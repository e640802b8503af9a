"""Backbones by the names that configs use after ``mmlk.``."""

from mmlk.backbones.dcls_convnext import DCLSConvNeXt
from mmlk.backbones.inceptionnext import InceptionNeXt
from mmlk.backbones.recnext import RecNeXt
from mmlk.backbones.slak import SLaK

__all__ = ['DCLSConvNeXt', 'InceptionNeXt', 'RecNeXt', 'SLaK']
