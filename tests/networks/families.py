"""Small networks of every family and series, as tests of modules need them."""

import torch

from mmlk.networks import DCLSConvNeXt, InceptionNeXt, RecNeXt, SLaK
from tests.cases import away

_SIZE = dict(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128))
_RECNEXT = dict(_SIZE, mlp_ratios=(2, 2, 2, 2))

FAMILIES = {
    'inceptionnext': (InceptionNeXt, _SIZE, dict(layer_scale_init=0.5)),
    'slak': (SLaK, dict(_SIZE, kernel_sizes=(13, 11, 9, 7)), dict(layer_scale_init=0.5)),
    'dcls_convnext': (
        DCLSConvNeXt,
        dict(_SIZE, kernel_count=5, kernel_size=9),
        dict(layer_scale_init=0.5),
    ),
    'recnext_m': (RecNeXt, dict(_RECNEXT, series='m'), {}),
    'recnext_a': (RecNeXt, dict(_RECNEXT, series='a'), {}),
    'recnext_stride8': (RecNeXt, dict(_RECNEXT, series='stride8'), {}),
    # Its fifth block of the last stage reuses the attention of the four before.
    'recnext_stride8_shared': (
        RecNeXt,
        dict(_RECNEXT, depths=(1, 1, 1, 5), series='stride8_shared'),
        {},
    ),
}
LAYOUTS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}


def build(family, folded=False, seed=0, **options):
    """A network in training mode, or folded in eval mode, away from its initial values."""
    network, arch, fixed = FAMILIES[family]
    torch.manual_seed(seed)
    model = away(network(arch, **{**fixed, **options}))
    return model.switch_to_deploy() if folded else model.train()


def images(family, layout='contiguous'):
    """Two images that leave the last stage more pixels than batch norms need for a stable result."""
    size = 128 if 'stride8' in family else 64
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=LAYOUTS[layout])
