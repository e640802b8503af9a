"""The networks, usable with torch alone; `mmlk.backbones` registers them with MMEngine."""

from mmlk.networks.dcls_convnext import DCLSConvNeXt
from mmlk.networks.inceptionnext import InceptionNeXt
from mmlk.networks.recnext import RecNeXt
from mmlk.networks.slak import SLaK

__all__ = ['DCLSConvNeXt', 'InceptionNeXt', 'RecNeXt', 'SLaK']
