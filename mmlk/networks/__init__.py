"""The networks, usable with torch alone; `mmlk.backbones` registers them with MMEngine."""

from mmlk.networks.dcls_convnext import DCLSConvNeXt
from mmlk.networks.inceptionnext import InceptionNeXt
from mmlk.networks.metanext import MetaNeXt
from mmlk.networks.recnext import RecNeXt
from mmlk.networks.slak import SLaK

FAMILIES = {kind.family: kind for kind in (InceptionNeXt, SLaK, DCLSConvNeXt, RecNeXt)}
"""The published networks by the name of their family."""

__all__ = ['DCLSConvNeXt', 'InceptionNeXt', 'MetaNeXt', 'RecNeXt', 'SLaK']
