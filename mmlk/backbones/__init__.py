"""The networks as backbones of OpenMMLab, by the names that configs use after ``mmlk.``."""

from mmlk import networks
from mmlk.backbones.base import Backbone
from mmlk.backbones.converted import build_converted
from mmlk.networks.mixers import CHANNEL_MIXERS, TOKEN_MIXERS
from mmlk.ops import DCLSConv2d
from mmlk.registry import MODELS

for _name, _part in {**TOKEN_MIXERS, **CHANNEL_MIXERS}.items():
    MODELS.register_module(name=_name, module=_part)
MODELS.register_module(module=DCLSConv2d)  # for the rules of a conversion


@MODELS.register_module()
class InceptionNeXt(Backbone, networks.InceptionNeXt):
    pass


@MODELS.register_module()
class SLaK(Backbone, networks.SLaK):
    pass


@MODELS.register_module()
class DCLSConvNeXt(Backbone, networks.DCLSConvNeXt):
    pass


@MODELS.register_module()
class RecNeXt(Backbone, networks.RecNeXt):
    pass


@MODELS.register_module()
class RepLKNet(Backbone, networks.RepLKNet):
    pass


@MODELS.register_module()
class UniRepLKNet(Backbone, networks.UniRepLKNet):
    pass


@MODELS.register_module()
class MetaNeXt(Backbone, networks.MetaNeXt):
    pass


__all__ = [
    'DCLSConvNeXt',
    'InceptionNeXt',
    'MetaNeXt',
    'RecNeXt',
    'RepLKNet',
    'SLaK',
    'UniRepLKNet',
    'build_converted',
]
