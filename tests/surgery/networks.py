"""Small networks of other packages, with weights under which every layer shows in the output."""

import timm
import torch
from torch import nn
from torchvision.models import efficientnet, mobilenet_v2
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

ONE_EACH = (1, 1, 1, 1)


def _torchvision_convnext():
    widths = (16, 24, 32)
    settings = [CNBlockConfig(a, b, 1) for a, b in zip(widths, (*widths[1:], None))]
    return ConvNeXt(settings, layer_scale=1.0, num_classes=10)


def _torchvision_efficientnet():
    configurations = [
        efficientnet.MBConvConfig(4, 3, 2, 16, 16, 1),
        efficientnet.MBConvConfig(4, 5, 2, 16, 24, 2),
        efficientnet.MBConvConfig(4, 5, 1, 24, 32, 1),
    ]
    return efficientnet.EfficientNet(configurations, dropout=0.0, num_classes=10)


def _mscan():
    from mmseg.models.backbones import MSCAN

    return MSCAN(
        embed_dims=[8, 16, 24, 32], depths=[1] * 4, drop_path_rate=0.0, norm_cfg=dict(type='BN')
    )


def _van():
    from mmpretrain.models.backbones import VAN

    arch = dict(embed_dims=[8, 16, 24, 32], depths=[1] * 4, ffn_ratios=[4] * 4)
    return VAN(arch, drop_path_rate=0.0)


def _replknet():
    from mmpretrain.models.backbones import RepLKNet

    arch = dict(
        large_kernel_sizes=[31, 29, 27, 13],
        layers=[1] * 4,
        channels=[16, 24, 32, 40],
        small_kernel=5,
        dw_ratio=1,
    )
    return RepLKNet(arch, drop_path_rate=0.0)


NETWORKS = {
    'timm mobilenetv3': lambda: timm.create_model('mobilenetv3_small_050', drop_rate=0.0),
    'timm convnext': lambda: timm.create_model(
        'convnext_atto', depths=ONE_EACH, dims=(16, 24, 32, 40), ls_init_value=1.0
    ),
    'timm fastvit': lambda: timm.create_model(
        'fastvit_t8', layers=ONE_EACH, embed_dims=(16, 32, 64, 128), layer_scale_init_value=1.0
    ),
    'timm starnet': lambda: timm.create_model('starnet_s050', depths=ONE_EACH),
    'torchvision mobilenet_v2': lambda: mobilenet_v2(width_mult=0.25, dropout=0.0),
    'torchvision convnext': _torchvision_convnext,
    'torchvision efficientnet': _torchvision_efficientnet,
    'mmseg mscan': _mscan,
    'mmpretrain van': _van,
    'mmpretrain replknet': _replknet,
}
"""Networks of other people, by package and name."""


def network(name):
    """One of `NETWORKS` in eval mode, with a seed of its own."""
    torch.manual_seed(0)
    model = with_scales(NETWORKS[name]())
    model.train(False)  # some packages' eval() returns nothing
    return model


@torch.no_grad()
def with_scales(model):
    """Norms and scales that hide nothing: statistics that are not trivial, layer scales of size 1."""
    for key, parameter in model.named_parameters():
        if parameter.dim() == 1 or 'scale' in key or 'gamma' in key:
            nn.init.uniform_(parameter, 0.5, 1.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.0)
    return model


def flat(output):
    """All tensors of an output, in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    return [each for part in output for each in flat(part)]


class Net(nn.Module):
    """Depthwise convolutions of many kinds on one map."""

    def __init__(self, channels=6, **options):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 1)
        self.mixers = nn.Sequential(depthwise(channels, 7), nn.GELU(), depthwise(channels, (1, 11)))
        self.head = nn.Sequential(depthwise(channels, 5, **options), nn.Conv2d(channels, 4, 1))

    def forward(self, x):
        return self.head(self.mixers(self.stem(x)))


def depthwise(channels, kernel_size, **options):
    sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    step = options.get('dilation', 1)
    padding = options.pop('padding', tuple(step * (each // 2) for each in sizes))
    return nn.Conv2d(channels, channels, sizes, padding=padding, groups=channels, **options)
