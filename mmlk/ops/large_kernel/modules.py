"""Decomposed large-kernel depthwise convolution of SLaK (Liu et al., ICLR 2023, Sec. 3.2).

A K x K kernel is replaced by two parallel strips, K x s and s x K, and a small s x s kernel, each
followed by its own batch norm, and summed. The published names ``LoRA1`` and ``LoRA2`` notwithstanding
there is no low-rank product. For inference the norms are absorbed and the small kernel is added to
the centre of the tall strip; both folds are exact.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlk.ops import dispatch
from mmlk.ops.depthwise import depthwise_conv2d
from mmlk.ops.large_kernel import large_kernel_branches, large_kernel_sum
from mmlk.ops.modules import NotScriptable, are_depthwise, can_stand_for, own_batch

MAX_KERNEL_SIZE = 127
"""Longest kernel side accepted; with stride 4 before it, it spans a 512-pixel crop."""


class LargeKernelDWConv2d(NotScriptable, nn.Module):
    """``norm(tall(x)) + norm(wide(x)) + norm(small(x))`` with the published parameter names.

    ``LoRA1`` is the tall strip (K rows, s columns), ``LoRA2`` the wide one, ``small_conv`` the s x s
    kernel, which exists only if s < K. Without decomposition ``lkb_origin`` is one K x K kernel in
    place of the strips. Stride 1, zero padding, no biases.

    Args:
        channels: Channels C of input and output.
        kernel_size: Long side K, odd.
        small_kernel_size: Short side s, odd where it is used: s < K, or strips are wanted.
        decomposed: Use two strips instead of the full kernel.
        norm: Makes the norm of a branch from its channels; None leaves norms out.

    Raises:
        ValueError: If a kernel size that is used is even, not positive, or above ``MAX_KERNEL_SIZE``.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        small_kernel_size: int = 5,
        decomposed: bool = True,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
    ):
        super().__init__()
        has_small = small_kernel_size < kernel_size
        used = (kernel_size, small_kernel_size) if decomposed or has_small else (kernel_size,)
        for size in used:
            if not isinstance(size, int) or size % 2 == 0 or not 0 < size <= MAX_KERNEL_SIZE:
                raise ValueError(
                    f'LargeKernelDWConv2d: kernel size {size!r} must be an odd number '
                    f'from 1 to {MAX_KERNEL_SIZE}'
                )
        self.channels = channels
        self.kernel_size = kernel_size
        self.small_kernel_size = small_kernel_size
        self.decomposed = decomposed
        if decomposed:
            self.LoRA1 = _branch(channels, kernel_size, small_kernel_size, norm)
            self.LoRA2 = _branch(channels, small_kernel_size, kernel_size, norm)
        else:
            self.lkb_origin = _branch(channels, kernel_size, kernel_size, norm)
        if has_small:
            self.small_conv = _branch(channels, small_kernel_size, small_kernel_size, norm)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f'LargeKernelDWConv2d: x has shape {tuple(x.shape)}, expected '
                f'(N, {self.channels}, H, W)'
            )
        branches = list(self.children())
        parts = [_conv_and_norm(branch) for branch in branches]
        if not are_depthwise(*(convolution for convolution, _ in parts)):
            return _added(branch(x) for branch in branches)
        convolutions, norms = zip(*parts)
        normed = norms[0] is not None
        weights, bias = [each.weight for each in convolutions], convolutions[0].bias
        if not normed:
            return (
                large_kernel_sum(x, weights, bias)
                if len(weights) > 1
                else depthwise_conv2d(x, *weights, bias)
            )
        return normed_sum(x, weights, norms)

    @torch.no_grad()
    def switch_to_deploy(self, dense: bool = False) -> LargeKernelDWConv2d:
        """Fold the norms and the small kernel, in place; ``dense`` also folds the strips into one.

        Two strips cost ``2 K s`` multiplications per value and become ``tall`` and ``wide``; one dense
        kernel costs ``K K`` and becomes ``lkb_reparam``, which only a route whose cost does not
        grow with the taps can use (51 x 51: 5 times the arithmetic of the strips). The full form
        becomes ``lkb_reparam`` either way. Calling it again changes nothing.

        Raises:
            ValueError: If a norm keeps no running statistics.
        """
        folded = {
            name: _folded(branch)
            for name, branch in self.named_children()
            if not isinstance(branch, nn.Conv2d)
        }
        if not folded:
            return self
        dtype = next(self.parameters()).dtype
        for name in folded:
            delattr(self, name)
        bias = sum(shift for _, shift in folded.values())
        kernels = {name: kernel for name, (kernel, _) in folded.items()}
        square = (self.kernel_size, self.kernel_size)
        if dense or not self.decomposed:
            kernel = sum(_embed(kernel, square) for kernel in kernels.values())
            self.lkb_reparam = _convolution(kernel, bias, dtype)
            return self
        tall, wide = kernels['LoRA1'], kernels['LoRA2']
        if 'small_conv' in kernels:
            tall = tall + _embed(kernels['small_conv'], tall.shape[2:])
        self.tall = _convolution(tall, bias, dtype)
        self.wide = _convolution(wide, None, dtype)
        return self

    def extra_repr(self) -> str:
        return (
            f'{self.channels}, kernel_size={self.kernel_size}, '
            f'small_kernel_size={self.small_kernel_size}, decomposed={self.decomposed}'
        )


def normed_sum(x: Tensor, weights: Sequence[Tensor], norms: Sequence[nn.Module]) -> Tensor:
    """The sum of up to three convolutions of a map, each behind a norm of its own.

    Args:
        x: (N, C, H, W).
        weights: Depthwise kernels (C, 1, kh, kw), sides odd.
        norms: A norm for each.
    """
    if len(weights) == 1:
        return norms[0](depthwise_conv2d(x, *weights))
    states = [own_batch(norm) for norm in norms]
    if None not in states and can_stand_for(*norms):
        run = dispatch.accelerated('large_kernel_normed', x, weights, states)
        if run is not None:
            return run(x, weights, states)
    parts = large_kernel_branches(x, weights)
    return _added(norm(part) for norm, part in zip(norms, parts))


def _conv_and_norm(branch: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The layers of a branch as `_branch` and `_convolution` make it; None for any other."""
    if isinstance(branch, nn.Conv2d):
        return branch, None
    if type(branch) is nn.Sequential and can_stand_for(branch):
        layers = dict(branch.named_children())
        if list(layers) in (['conv'], ['conv', 'bn']):
            return layers['conv'], layers.get('bn')
    return None, None


def _added(maps: Iterable[Tensor]) -> Tensor:
    """The sum of the maps, in a tensor of its own: a hook may hold the first."""
    first, *others = maps
    return sum(others, first)


def _branch(
    channels: int, kernel_height: int, kernel_width: int, norm: Callable[[int], nn.Module] | None
) -> nn.Sequential:
    """Convolution and norm under the published names ``conv`` and ``bn``."""
    size = (kernel_height, kernel_width)
    modules = OrderedDict(
        conv=nn.Conv2d(
            channels,
            channels,
            size,
            padding=(kernel_height // 2, kernel_width // 2),
            groups=channels,
            bias=False,
        )
    )
    if norm is not None:
        modules['bn'] = norm(channels)
    return nn.Sequential(modules)


def _folded(branch: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Kernel and bias, in float64, of a branch whose norm is in eval mode."""
    weight, bias = branch.conv.weight.double(), branch.conv.bias
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias.double()
    if not hasattr(branch, 'bn'):
        return weight, bias
    norm = branch.bn
    if getattr(norm, 'running_var', None) is None:
        raise ValueError(
            f'LargeKernelDWConv2d.switch_to_deploy: {type(norm).__name__} keeps no '
            'running statistics to fold'
        )
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale = scale * norm.weight.double()
        shift = shift * norm.weight.double() + norm.bias.double()
    return weight * scale.view(-1, 1, 1, 1), shift + bias * scale


def _embed(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """``kernel`` in the centre of a zero kernel of ``size``."""
    rows, columns = (
        (target - side) // 2 for target, side in zip(size, kernel.shape[2:], strict=True)
    )
    return F.pad(kernel, (columns, columns, rows, rows))


def _convolution(kernel: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Conv2d:
    channels, _, height, width = kernel.shape
    convolution = nn.Conv2d(
        channels,
        channels,
        (height, width),
        padding=(height // 2, width // 2),
        groups=channels,
        bias=bias is not None,
        device=kernel.device,
        dtype=dtype,
    )
    convolution.weight.copy_(kernel)
    if bias is not None:
        convolution.bias.copy_(bias)
    return convolution
