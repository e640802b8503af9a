"""Shapes and tolerances of the whole suite; the only place where numbers like these stand.

A tolerance is relative to the largest magnitude of the expected tensor: float32 operators differ by
accumulation order only, 16-bit ones by one rounding of the output. Parameter gradients sum over
batch and pixels and get a little more slack.
"""

import torch

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
        f'{error.argmax().item()} of {tuple(want.shape)}')

# The smallest network of each family that has all of its parts; `arch` of the backbone's constructor.
# Every registered backbone needs an entry: the contract tests run over this table.
MICRO_ARCHS = {
    'DCLSConvNeXt': dict(depths=(2, 1, 3, 1), dims=(16, 24, 32, 40), kernel_count=5, kernel_size=9),
    'InceptionNeXt': dict(depths=(1, 1, 2, 1), dims=(16, 24, 32, 40)),
    'SLaK': dict(depths=(1, 1, 2, 1), dims=(20, 24, 33, 40), kernel_sizes=(13, 11, 9, 7),
                 small_kernel_size=3),
}
