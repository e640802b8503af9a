"""Shapes and tolerances of the whole suite; the only place where numbers like these stand.

A tolerance is relative to the largest magnitude of the expected tensor: float32 operators differ by
accumulation order only, 16-bit ones by one rounding of the output. Parameter gradients sum over
batch and pixels and get a little more slack.
"""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

# dtype -> (outputs and input gradients, parameter gradients)
TOLERANCE = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (1e-5, 5e-5),
    torch.bfloat16: (1.6e-2, 2e-2),
    torch.float16: (2e-3, 4e-3),
}

# Recorded outputs of the authors' networks (float32, nine significant digits): relative to the
# standard deviation of the recorded tensor.
GOLDEN_OPERATOR = 1e-5
GOLDEN_NETWORK = 1e-4
GOLDEN_TRAIN_MODE = 1e-3

# Float64 gradients of the operators go through Fourier transforms for some kernels and through
# torch.autograd.gradcheck's central differences in the tests.
GRADCHECK = dict(eps=1e-6, atol=1e-6, rtol=1e-4)

# id -> (N, C, H, W), kernel, stride: odd sizes, batch 1, one channel, maps smaller than the kernel,
# single rows and pixels, and every route of the CPU policy.
DEPTHWISE_CASES = {
    'k3': ((2, 6, 13, 9), (3, 3), 1),
    'k3-one-channel': ((3, 1, 8, 7), (3, 3), 1),
    'k5-stride2': ((2, 8, 15, 12), (5, 5), 2),
    'k3x5-stride2x1': ((1, 8, 11, 14), (3, 5), (2, 1)),
    'k7': ((1, 10, 57, 33), (7, 7), 1),
    'k9': ((2, 5, 20, 19), (9, 9), 1),
    'k1x11': ((2, 12, 17, 23), (1, 11), 1),
    'k11x1': ((2, 12, 17, 23), (11, 1), 1),
    'k17': ((2, 9, 28, 31), (17, 17), 1),
    'k17-large-map': ((2, 3, 56, 45), (17, 17), 1),
    'k17-medium-map': ((2, 3, 40, 41), (17, 17), 1),
    'k51x5': ((1, 4, 56, 57), (51, 5), 1),
    'k5x51': ((2, 4, 56, 57), (5, 51), 1),
    'k31': ((2, 3, 33, 40), (31, 31), 1),
    'k61x61-clipped': ((1, 3, 14, 9), (61, 61), 1),
    'k51x5-clipped': ((2, 16, 7, 7), (51, 5), 1),
    'k9x21-stride2-clipped': ((1, 4, 5, 6), (9, 21), 2),
    'k11-pixel': ((3, 8, 1, 1), (11, 11), 1),
    'k1x11-row': ((2, 8, 1, 40), (1, 11), 1),
    'k7-column': ((2, 8, 40, 1), (7, 7), 1),
    'k1': ((2, 7, 6, 5), (1, 1), 1),
}


def assert_close(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Compare in float64 against ``tolerance`` times the largest magnitude of ``want``."""
    assert got.shape == want.shape, f'{name}: shape {tuple(got.shape)} != {tuple(want.shape)}'
    got64, want64 = got.detach().double().cpu(), want.detach().double().cpu()
    if want64.numel() == 0:
        return
    error = (got64 - want64).abs()
    bound = tolerance * max(want64.abs().max().item(), 1e-6)
    worst = error.max().item()
    assert worst <= bound, (
        f'{name} ({got.dtype}): error {worst:.3g} > {bound:.3g} at flat index '
        f'{error.argmax().item()} of {tuple(want.shape)}'
    )


# The smallest network of each family that has all of its parts; `arch` of the backbone's constructor.
# Every registered backbone needs an entry: the contract tests run over this table.
MICRO_ARCHS = {
    'DCLSConvNeXt': dict(depths=(2, 1, 3, 1), dims=(16, 24, 32, 40), kernel_count=5, kernel_size=9),
    'InceptionNeXt': dict(depths=(1, 1, 2, 1), dims=(16, 24, 32, 40)),
    'SLaK': dict(
        depths=(1, 1, 2, 1), dims=(20, 24, 33, 40), kernel_sizes=(13, 11, 9, 7), small_kernel_size=3
    ),
    'RecNeXt': dict(depths=(1, 1, 2, 1), dims=(16, 32, 64, 128)),
    'RepLKNet': dict(
        depths=(1, 1, 2, 1),
        dims=(16, 24, 32, 40),
        kernel_sizes=(15, 13, 13, 7),
        small_kernel_size=3,
    ),
    'UniRepLKNet': dict(
        depths=(1, 1, 2, 1), dims=(16, 24, 32, 40), kernel_sizes=((3,), (3,), (13, 3), (5,))
    ),
    'MetaNeXt': dict(
        depths=(2, 1, 2, 1),
        dims=(16, 24, 32, 40),
        block=dict(type='ConvNeXt'),
        stem=dict(type='RecNeXtStem'),
        token_mixer=[
            dict(type='mmlk.DCLSDepthwiseConv2d', kernel_count=5, kernel_size=9),
            dict(type='mmlk.RecConv2d', level=2),
            [
                dict(type='mmlk.LargeKernelDWConv2d', kernel_size=9, small_kernel_size=3),
                dict(type='mmlk.RecAttn2d', num_heads=4),
            ],
            dict(type='mmlk.InceptionDWConv2d', band_kernel_size=5),
        ],
        channel_mixer=[
            dict(type='mmlk.ConvMlp'),
            dict(type='mmlk.ConvNormMlp', norm_cfg=dict(type='BN')),
            dict(type='mmlk.ConvMlp', ratio=2),
            dict(type='mmlk.ConvMlp', ratio=3),
        ],
    ),
}


def away(model):
    """``model`` moved away from the initial values at which scales and norms hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model
