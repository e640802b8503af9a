"""Convolutions whose kernels are constructed from learnt positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlk.ops import compat, dispatch
from mmlk.ops.dcls import (
    INITIAL_SIGMA,
    check_version,
    checked_window,
    dcls_kernel1d,
    dcls_kernel2d,
    dcls_kernel3d,
    repulsive_loss,
)
from mmlk.ops.dcls.construct import driven_axes
from mmlk.ops.depthwise import DepthwiseConv2d, depthwise_conv2d
from mmlk.ops.maps import pair
from mmlk.ops.modules import NotScriptable
from mmlk.ops.packed_weights import Snapshot


class _DCLS(NotScriptable, nn.Module):
    """Weights and positions of one layer; keeps the constructed kernel while nothing changes.

    The kernel is kept in eval mode when no gradient is asked for. It is built again after
    ``train()`` or ``eval()``, after loading, moving or casting the module, and after any change of a
    parameter, on a CPU also one through ``parameter.data``. On other devices, where PyTorch does not
    count that, call ``eval()`` or :meth:`drop_kernel` after it.
    """

    no_weight_decay = ('P', 'SIG')
    """Parameters that layer-wise optimizer settings do not decay."""
    required_hooks = dict(dcls_clamp=dict(type='mmlk.DCLSClampHook'))
    """What the train tool adds to a config that has this layer."""

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        kernel_size: int | Sequence[int],
        groups: int,
        bias: bool,
        version: str,
    ):
        super().__init__()
        name = type(self).__name__
        check_version(name, version)
        if kernel_count < 1:
            raise ValueError(f'{name}: kernel_count {kernel_count} must be at least 1')
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f'{name}: groups {groups} must divide in_channels {in_channels} and '
                f'out_channels {out_channels}'
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_count = kernel_count
        self.kernel_size = checked_window(name, kernel_size, dims)
        self.version = version
        shape = (out_channels, in_channels // groups, kernel_count)
        self.weight = nn.Parameter(torch.empty(shape))
        self.P = nn.Parameter(torch.empty(dims, *shape))
        self.SIG = nn.Parameter(torch.empty(dims, *shape)) if version in INITIAL_SIGMA else None
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self._owner: tuple[_DCLS, ...] = ()
        self._kept: _KeptKernel | None = None
        self._register_state_dict_hook(_save_shared)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights and bias as ``nn.Conv2d``, positions normal with std 0.5 around the centre."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
        if self.owns_positions:
            nn.init.normal_(self.P, 0, 0.5)
            self.clamp_parameters()
            if self.SIG is not None:
                nn.init.constant_(self.SIG, INITIAL_SIGMA[self.version])

    @property
    def owns_positions(self) -> bool:
        """Whether positions are parameters of this layer rather than of another."""
        return len(self._owner) == 0

    @property
    def position_limits(self) -> tuple[int, ...]:
        """Largest magnitude of each component of ``P``: half the window along the axis it drives."""
        axes = driven_axes(self.version, len(self.kernel_size))
        return tuple(self.kernel_size[axis] // 2 for axis in axes)

    def share_positions(self, owner: _DCLS) -> None:
        """Use the positions (and widths) of ``owner`` from now on, and give up the own ones.

        They stay parameters of ``owner`` alone, so optimizers, EMA and DDP meet them once, while
        ``self.P`` and the state dict's ``P`` of this layer go on existing. Loading either key writes
        the shared tensor; of several the last one counts.

        Raises:
            ValueError: If the two layers' positions differ in shape, window or version.
        """
        owner = owner._owner[0] if owner._owner else owner
        mine = (self.P.shape, self.kernel_size, self.version)
        theirs = (owner.P.shape, owner.kernel_size, owner.version)
        if mine != theirs:
            raise ValueError(
                f'{type(self).__name__}.share_positions: positions, window and version '
                f"{mine} differ from the owner's {theirs}"
            )
        if owner is not self:
            del self.P, self.SIG
            # Inside a tuple: a module attribute would make the owner a child of this layer.
            self._owner = (owner,)
            self._kept = None

    def __getattr__(self, name: str):
        if name in ('P', 'SIG') and self.__dict__.get('_owner'):
            return getattr(self._owner[0], name)
        return super().__getattr__(name)

    @torch.no_grad()
    def clamp_parameters(self) -> None:
        """Move positions that left the window back to its border; nothing to do for shared ones."""
        self._kept = None
        if not self.owns_positions:
            return
        # Past the count of writes, so that two forward passes may come before one backward pass: the
        # second one finds all positions inside, and those of a step between are counted by the step.
        counts = _traced() or compat.top_transform() is not None
        for component, limit in zip(self.P if counts else self.P.data, self.position_limits):
            component.clamp_(-limit, limit)

    def repulsive_loss(self) -> Tensor:
        """Mean overlap of this layer's elements, see `repulsive_loss`."""
        return repulsive_loss(self.P)

    def kernel(self, dtype: torch.dtype | None = None) -> Tensor:
        """Constructed kernel (O, I, *kernel_size), rounded to ``dtype`` at the end if given."""
        source = self._owner[0] if self._owner else self
        tensors = [each for each in (self.weight, source.P, source.SIG) if each is not None]
        keeps = (
            not self.training
            and not _traced()
            and not (torch.is_grad_enabled() and any(each.requires_grad for each in tensors))
        )
        keeps = keeps and not any(each.is_inference() for each in tensors)  # they count no writes
        if keeps and self._kept is not None and self._kept.holds(dtype, tensors):
            return self._kept.kernel
        build = (dcls_kernel1d, dcls_kernel2d, dcls_kernel3d)[len(self.kernel_size) - 1]
        kernel = build(
            self.weight, source.P, source.SIG, kernel_size=self.kernel_size, version=self.version
        )
        if dtype is not None:
            kernel = kernel.to(dtype)
        self._kept = _KeptKernel(kernel, dtype, tensors) if keeps else None
        return kernel

    def drop_kernel(self) -> None:
        """Forget the kept kernel."""
        self._kept = None

    @torch.no_grad()
    def switch_to_deploy(self) -> nn.Module:
        """The plain convolution with the constructed kernel, equal to this layer."""
        plain = self._plain()
        plain.weight = nn.Parameter(self.kernel(self.weight.dtype).clone())
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach().clone())
        return plain.train(self.training)

    def _plain(self) -> nn.Module:
        """A convolution of the same sizes, whose parameters are replaced."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> _DCLS:
        self._kept = None
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> _DCLS:
        self._kept = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_kept': None}

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        self._kept = None
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for name in self._shared_names():
            key, target = prefix + name, getattr(self, name)
            if key in unexpected_keys:
                unexpected_keys.remove(key)
            value = state_dict.get(key)
            if value is None:
                continue
            if value.shape != target.shape:
                error_msgs.append(
                    f'size mismatch for {key}: copying {tuple(value.shape)} to '
                    f'{tuple(target.shape)}'
                )
            elif local_metadata.get('assign_to_params_buffers', False):
                setattr(self._owner[0], name, nn.Parameter(value, target.requires_grad))
            else:
                with torch.no_grad():
                    target.copy_(value)

    def _shared_names(self) -> tuple[str, ...]:
        if not self._owner:
            return ()
        return ('P',) if self.SIG is None else ('P', 'SIG')

    def extra_repr(self) -> str:
        words = (
            f'{self.in_channels}, {self.out_channels}, kernel_count={self.kernel_count}, '
            f'kernel_size={self.kernel_size}, version={self.version}'
        )
        words += f', groups={self.groups}' if self.groups != 1 else ''
        return words + (', shared positions' if self._owner else '')


def _save_shared(module: _DCLS, state_dict: dict, prefix: str, _local_metadata: dict) -> None:
    """State-dict hook: shared positions under the layer's own key, as the authors' files have them.

    They are copies, so that the dict holds every tensor once: safetensors refuses aliases, and an
    average over the dict would otherwise move a shared tensor once per layer.
    """
    for name in module._shared_names():
        state_dict[prefix + name] = getattr(module, name).detach().clone()
    if module._owner and module.bias is not None:
        state_dict[prefix + 'bias'] = state_dict.pop(prefix + 'bias')


def _traced() -> bool:
    return torch.compiler.is_compiling() or dispatch.refusal_for_export() is not None


class _KeptKernel:
    """A constructed kernel and the state of the parameters that it was constructed from."""

    def __init__(
        self, kernel: Tensor, dtype: torch.dtype | None, tensors: Sequence[Tensor]
    ) -> None:
        self.kernel = kernel
        self._dtype = dtype
        self._snapshots = [Snapshot(each) for each in tensors]

    def holds(self, dtype: torch.dtype | None, tensors: Sequence[Tensor]) -> bool:
        """Whether ``tensors`` are in the state that the kernel was made from, in this dtype."""
        return (
            dtype is self._dtype
            and len(tensors) == len(self._snapshots)
            and all(each.holds(tensor) for each, tensor in zip(self._snapshots, tensors))
        )


class _DCLSConv(_DCLS):
    """Convolution of N spatial axes; the public classes fix N."""

    dims: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilated_kernel_size: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = 'zeros',
        version: str = 'v0',
    ):
        super().__init__(
            self.dims,
            in_channels,
            out_channels,
            kernel_count,
            dilated_kernel_size,
            groups,
            bias,
            version,
        )
        # torch's own layer checks and normalises these.
        plain = self._convolution(stride, padding, padding_mode)
        self.stride, self.padding, self.padding_mode = plain.stride, plain.padding, padding_mode
        self._explicit_padding = compat.explicit_padding(plain)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (N, C, ...) as ``nn.ConvNd`` with the constructed kernel would."""
        kernel, padding = self.kernel(_input_dtype(x)), self.padding
        if self.padding_mode != 'zeros':
            x, padding = F.pad(x, self._explicit_padding, mode=self.padding_mode), 0
        if self._is_same_depthwise(padding):
            return depthwise_conv2d(x, kernel, _like(self.bias, kernel), self.stride)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self.dims - 1]
        return convolve(x, kernel, _like(self.bias, kernel), self.stride, padding, 1, self.groups)

    def _convolution(
        self,
        stride: int | Sequence[int],
        padding: int | str | Sequence[int],
        padding_mode: str,
    ) -> nn.Module:
        """Torch's layer of the same sizes, without memory for its parameters."""
        return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.dims - 1](
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride,
            padding,
            groups=self.groups,
            bias=self.bias is not None,
            padding_mode=padding_mode,
            device='meta',
        )

    def _plain(self) -> nn.Module:
        if self.padding_mode == 'zeros' and self._is_same_depthwise(self.padding):
            return DepthwiseConv2d(
                self.out_channels, self.kernel_size, self.stride, bias=self.bias is not None
            )
        return self._convolution(self.stride, self.padding, self.padding_mode)

    def _is_same_depthwise(self, padding: int | str | Sequence[int]) -> bool:
        return (
            self.dims == 2
            and self.in_channels == self.out_channels == self.groups
            and all(size % 2 for size in self.kernel_size)
            and padding in ('same', tuple(size // 2 for size in self.kernel_size))
        )


class DCLSConv1d(_DCLSConv):
    """`DCLSConv2d` for sequences (N, C, L)."""

    dims = 1


class DCLSConv2d(_DCLSConv):
    """Stands in for ``nn.Conv2d``: a large window with few elements at learnt positions.

    Arguments, their order and the parameters ``weight`` (O, I, m), ``P`` (2, O, I, m), ``SIG`` and
    ``bias`` are those of ``Dcls2d`` of the DCLS package, whose default version has changed over time;
    here it is ``v0``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_count: Elements m per kernel, in place of the k x k weights of ``nn.Conv2d``.
        stride: As in ``nn.Conv2d``.
        padding: As in ``nn.Conv2d``; it follows the window and is ``k // 2`` or ``'same'`` to keep
            the size.
        dilated_kernel_size: Window (kh, kw) in which elements may move.
        groups: As in ``nn.Conv2d``.
        bias: As in ``nn.Conv2d``.
        padding_mode: As in ``nn.Conv2d``.
        version: ``'v0'``, ``'v1'``, ``'max'`` or ``'gauss'``, see `dcls_kernel2d`.

    Raises:
        ValueError: If the version is unknown, the element count is below 1, the window is not
            positive, or the groups do not divide the channels.
    """

    dims = 2


class DCLSConv3d(_DCLSConv):
    """`DCLSConv2d` for volumes (N, C, D, H, W)."""

    dims = 3


class DCLSDepthwiseConv2d(_DCLS):
    """Depthwise convolution with learnable spacings that keeps the size of the map.

    Args:
        channels: Channels C; parameters are ``weight`` (C, 1, m), ``P`` (2, C, 1, m), for ``max`` and
            ``gauss`` also ``SIG``, and ``bias`` (C,).
        kernel_count: Elements m per channel.
        kernel_size: Odd window, or (kh, kw).
        stride: Step in rows and columns.
        bias: Whether to add a bias per channel.
        version: ``'v0'``, ``'v1'``, ``'max'`` or ``'gauss'``, see `dcls_kernel2d`.

    Raises:
        ValueError: If the version is unknown, the element count is below 1, or the window even.
    """

    def __init__(
        self,
        channels: int,
        kernel_count: int = 34,
        kernel_size: int | Sequence[int] = 17,
        stride: int | tuple[int, int] = 1,
        bias: bool = True,
        version: str = 'v0',
    ):
        super().__init__(2, channels, channels, kernel_count, kernel_size, channels, bias, version)
        if any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(
                f'DCLSDepthwiseConv2d: kernel_size {self.kernel_size} must be odd to '
                'keep the size; use DCLSConv2d for even windows'
            )
        self.stride = pair(stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H / sh), ceil(W / sw))."""
        kernel = self.kernel(_input_dtype(x))
        return depthwise_conv2d(x, kernel, _like(self.bias, kernel), self.stride)

    def _plain(self) -> DepthwiseConv2d:
        return DepthwiseConv2d(
            self.out_channels, self.kernel_size, self.stride, bias=self.bias is not None
        )


def _input_dtype(x: Tensor) -> torch.dtype:
    """Dtype in which the convolution of ``x`` wants its kernel; autocast casts float32 itself."""
    autocast = x.device.type != 'meta' and torch.is_autocast_enabled(x.device.type)
    return torch.float32 if autocast else x.dtype


def _like(bias: Tensor | None, kernel: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(kernel.dtype)
