"""The networks, usable with torch alone; `mmlk.backbones` registers them with MMEngine."""

from mmlk.networks.dcls_convnext import DCLSConvNeXt
from mmlk.networks.inceptionnext import InceptionNeXt
from mmlk.networks.metanext import MetaNeXt
from mmlk.networks.recnext import RecNeXt
from mmlk.networks.replknet import RepLKNet
from mmlk.networks.slak import SLaK
from mmlk.networks.unireplknet import UniRepLKNet

FAMILIES = {
    kind.family: kind
    for kind in (InceptionNeXt, SLaK, DCLSConvNeXt, RecNeXt, RepLKNet, UniRepLKNet)
}
"""The published networks by the name of their family."""

__all__ = [
    'DCLSConvNeXt',
    'InceptionNeXt',
    'MetaNeXt',
    'RecNeXt',
    'RepLKNet',
    'SLaK',
    'UniRepLKNet',
]
