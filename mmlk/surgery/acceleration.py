"""``mmlk.accelerate``: the same network, its depthwise convolutions and heads in faster code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmlk.ops import depthwise_conv2d, dispatch, expanding_depthwise_conv2d
from mmlk.ops.modules import NotScriptable, pads_evenly
from mmlk.surgery.compare import excess, outputs
from mmlk.surgery.heads import considered_heads, take_head
from mmlk.surgery.layers import (
    depthwise_layers,
    described,
    refusal_of_geometry,
    refusal_of_kind,
)
from mmlk.surgery.swapped import Swapped, give_back, is_swapped, swap
from mmlk.surgery.table import table


class AcceleratedConv2d(NotScriptable, Swapped, nn.Conv2d):
    """What `accelerate` makes of an ``nn.Conv2d``: same object, attributes, hooks and parameters.

    It is never constructed: a layer gets this class, and `restore` gives it its own one back.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or not pads_evenly(self):  # its attributes were changed since
            return super().forward(x)
        return _operator(self)(x, self.weight, self.bias, self.stride)


def _operator(layer: nn.Conv2d) -> Callable[..., Tensor]:
    expands = layer.out_channels != layer.in_channels
    return expanding_depthwise_conv2d if expands else depthwise_conv2d


class Considered(NamedTuple):
    """One depthwise convolution or head of the network.

    Args:
        names: All its names in the network.
        what: Kernel, stride and dilation of a convolution, the class of a head.
        reason: Why it was left alone, None where it was taken.
    """

    names: tuple[str, ...]
    what: str
    reason: str | None


class Acceleration:
    """What `accelerate` did; printed, it is a table of the layers. A context that restores them.

    Args:
        taken: The layers and heads that were taken.
        layers: What became of each depthwise convolution and head.
        error: Largest difference of an output on the sample, of the network or of a layer that was
            taken, over its standard deviation.
    """

    def __init__(
        self, taken: list[nn.Module], layers: tuple[Considered, ...], error: float
    ) -> None:
        self._taken = taken
        self.layers = layers
        self.error = error

    @property
    def taken(self) -> tuple[str, ...]:
        """Names of the layers that were taken."""
        return tuple(each.names[0] for each in self.layers if each.reason is None)

    def restore(self) -> None:
        """Give the layers that were taken back to torch; those that were since are left so.

        Raises:
            ValueError: If one was parametrised since; none is restored then.
        """
        give_back({layer: names[0] for layer, names in zip(self._taken, self._names())})

    def _names(self) -> list[tuple[str, ...]]:
        return [each.names for each in self.layers if each.reason is None]

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def __str__(self) -> str:
        if not self.layers:
            return 'no depthwise convolution and no head of MMSegmentation in the network'
        rows = [(', '.join(each.names), each.what, each.reason or 'taken') for each in self.layers]
        return table(('layer', 'is', 'result'), rows)


def accelerate(model: nn.Module, sample: Any, *, tolerance: float | None = None) -> Acceleration:
    """Have our operators compute depthwise convolutions where they are expected to be faster.

    The network stays what it is: parameters, state dict, hooks, modes. A layer is taken if the policy of
    the operators has a faster way than torch's convolution for the kernel and one of the maps that
    the layer gets for the sample: their sizes, memory format, dtype and device count, the batch hardly.
    Taken layers compute other maps, too. `UPerHead`, `PSPHead` and `FPNHead` of MMSegmentation are taken
    as well: on a CPU, where no gradients are asked for, they then convolve small maps before resizing
    them. Outputs of the network and of each taken layer are compared.

    Args:
        model: Any network; changed in place.
        sample: A batch as the network will get it: a tensor, a tuple of positional arguments or a
            mapping of named ones. It is run twice, in eval mode.
        tolerance: Largest allowed difference of an output, over its standard deviation; None is 1e-4
            in float32, 1e-10 in float64, 1e-2 in float16, 5e-2 in bfloat16. Outputs that are no floating
            tensors, or in no list, tuple or mapping, are not compared.

    Returns:
        What was taken and why the rest was not. ``restore()`` of it, the end of its ``with`` block, or
        ``mmlk.restore(model)`` gives the layers back.

    Raises:
        ValueError: If outputs on the sample differ by more, are not finite, or there is nothing to
            compare; the network is as before then.

    Note:
        Second derivatives are not available through taken layers.
    """
    layers = depthwise_layers(model)
    reasons = {layer: _refusal(layer) for layer in layers}
    seen = {layer: _Probe() for layer, reason in reasons.items() if reason is None}
    hooks = [
        layer.register_forward_pre_hook(probe, with_kwargs=True) for layer, probe in seen.items()
    ]
    try:
        want = outputs(model, sample)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, probe in seen.items():
        reasons[layer] = probe.reason
    heads = considered_heads(model)
    reasons = {**reasons, **{head: reason for head, (_, reason) in heads.items()}}
    report = {
        **{
            layer: Considered(names, described(layer), reasons[layer])
            for layer, names in layers.items()
        },
        **{
            head: Considered((name,), type(head).__name__, reason)
            for head, (name, reason) in heads.items()
        },
    }
    taken = {each: found.names[0] for each, found in report.items() if found.reason is None}
    error = _swap(model, sample, taken, want, tolerance)
    return Acceleration(list(taken), tuple(report.values()), error)


def restore(model: nn.Module) -> tuple[str, ...]:
    """Give every layer and head of a network that `accelerate` took its own code back.

    Args:
        model: The network, or a copy of it.

    Returns:
        Names of the layers that were restored; none where nothing was accelerated.

    Raises:
        ValueError: If one was parametrised since; none is restored then.
    """
    found = {module: name for name, module in model.named_modules() if is_swapped(module)}
    give_back(found)
    return tuple(found.values())


class _Probe:
    """Forward pre-hook that asks the policy about every map that a layer gets."""

    def __init__(self) -> None:
        self.reason: str | None = 'the sample does not call it'
        self._gains = False

    def __call__(self, layer: nn.Conv2d, args: tuple, kwargs: dict[str, Tensor]) -> None:
        x = args[0] if args else kwargs['input']
        if self._gains:
            return
        if x.dim() != 4:
            self.reason = f'it gets a map of shape {tuple(x.shape)}, without a batch'
            return
        self.reason = dispatch.refusal_to_gain(
            _operator(layer).__name__, x, layer.weight, layer.bias, layer.stride
        )
        self._gains = self.reason is None


def _refusal(layer: nn.Conv2d) -> str | None:
    """Reason why our operator cannot stand for a layer, or None."""
    if type(layer).__module__.startswith('mmlk.'):
        return 'this package computes it already'
    if layer.dilation != (1, 1):
        return f'it has dilation {layer.dilation}'
    return refusal_of_kind(layer) or refusal_of_geometry(layer, expands=True)


class _Check:
    """Forward pre-hook that compares the operator with torch on every map that a layer gets.

    Layer scales and norms may hide from the network's output what happens in a layer.
    """

    def __init__(self, name: str, tolerance: float | None) -> None:
        self.worst = 0.0
        self._name, self._tolerance = name, tolerance

    def __call__(self, layer: nn.Conv2d, args: tuple, kwargs: dict[str, Tensor]) -> None:
        x = args[0] if args else kwargs['input']
        got, want = layer.forward(x), nn.Conv2d.forward(layer, x)
        self.worst = max(self.worst, _error([got], [want], self._tolerance, f'layer {self._name}'))


def _swap(
    model: nn.Module,
    sample: Any,
    layers: dict[nn.Module, str],
    want: list[Tensor],
    tolerance: float | None,
) -> float:
    """Give the layers their new class and compare; back again if anything is wrong."""
    if not layers:
        return 0.0
    if not want:
        raise ValueError(
            'accelerate: the network returns no floating tensor for the sample (in lists, tuples '
            'and mappings), so there is nothing to compare; give arguments for which it does'
        )
    if not all(bool(torch.isfinite(each).all()) for each in want):
        raise ValueError(
            'accelerate: an output of the untouched network on the sample is not finite; give a '
            'sample for which it is'
        )
    checks = []
    hooks: list[Any] = []
    try:
        for layer, name in layers.items():
            if not isinstance(layer, nn.Conv2d):
                take_head(layer)
                continue
            swap(layer, AcceleratedConv2d)
            checks.append(_Check(name, tolerance))
            hooks.append(layer.register_forward_pre_hook(checks[-1], with_kwargs=True))
        error = _error(outputs(model, sample), want, tolerance, 'the network')
    except BaseException:
        give_back(layers)
        raise
    finally:
        for hook in hooks:
            hook.remove()
    return max([error, *(check.worst for check in checks)])


def _error(got: list[Tensor], want: list[Tensor], tolerance: float | None, whose: str) -> float:
    """Largest error over the standard deviation; raises if it is too large."""
    error, wrong = excess(got, want, tolerance)
    if wrong is not None:
        raise ValueError(
            f'accelerate: {whose} {wrong}; the network is as before. It may draw random numbers or '
            'keep a state between calls; otherwise raise the tolerance'
        )
    return error
