"""The networks as backbones of OpenMMLab, by the names that configs use after ``mmlk.``."""

from mmlk import networks
from mmlk.backbones.base import Backbone
from mmlk.registry import MODELS


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


__all__ = ['DCLSConvNeXt', 'InceptionNeXt', 'RecNeXt', 'SLaK']
