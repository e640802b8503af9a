"""Which code computes an operator, and why.

An operator has backends in a fixed order of preference. A backend's ``refusal`` looks at the same
arguments as the operator and returns the reason why it cannot take them, or None. `run` takes the
first backend without a reason, `explain` prints the reasons: both ask the same predicates, so they
cannot disagree. The environment variable ``MMLK_BACKEND`` forces one backend for every operator that
has it; a forced backend that refuses raises with its reason.

Blocks of layers that a device computes as one are operators like any other. Their reference is the
chain of layers, so a layer asks `accelerated` and, where that is None, calls its parts one by one.

Every choice between two ways of computing the same thing at run time is made here. What a backend
does with a shape (which loop, which library) is that backend's own policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmlk.ops import compat, library
from mmlk.ops.jit import recording
from mmlk.ops.maps import channels_last

PREFERENCE = ('triton', 'cpu', 'separable', 'reference')
ENVIRONMENT = 'MMLK_BACKEND'


class Backend(NamedTuple):
    """One way to compute an operator.

    Args:
        name: One of `PREFERENCE`.
        run: The computation, with the operator's arguments.
        refusal: Reason why it cannot take these arguments, or None.
        describe: Further words on what it would do with them, for `explain`.
        refusal_to_gain: Reason why it is not faster than the reference for them, or None.
    """

    name: str
    run: Callable[..., Any]
    refusal: Callable[..., str | None]
    describe: Callable[..., str] | None = None
    refusal_to_gain: Callable[..., str | None] | None = None


_ARGUMENTS: dict[str, Callable[..., tuple]] = {}
_BACKENDS: dict[str, tuple[Backend, ...]] = {}


def declare(operator: str, arguments: Callable[..., tuple], reference: Callable[..., Any]) -> None:
    """Make ``operator`` known, with the backend that every operator has.

    Args:
        operator: Name of the public function.
        arguments: From the arguments of the public function, but ``backend``, to the positional ones of
            the backends; raises where they do not fit.
        reference: The definition, called with the backends' arguments.
    """
    _ARGUMENTS[operator] = arguments
    register(operator, Backend('reference', reference, no_refusal))


def register(operator: str, backend: Backend) -> None:
    """Add ``backend`` to ``operator``, replacing an earlier one of the same name."""
    if backend.name not in PREFERENCE:
        raise ValueError(f'register: backend {backend.name!r} is not one of {PREFERENCE}')
    others = [each for each in _BACKENDS.get(operator, ()) if each.name != backend.name]
    # One assignment of a finished tuple: a concurrent reader sees the old list or the new one.
    _BACKENDS[operator] = tuple(
        sorted([*others, backend], key=lambda each: PREFERENCE.index(each.name))
    )


def backends(operator: str) -> tuple[str, ...]:
    """Names of the backends of ``operator``, preferred first."""
    return tuple(each.name for each in _BACKENDS[operator])


def registered() -> tuple[tuple[Backend, ...], ...]:
    """All backends of all operators, to be compared with those of another time."""
    return tuple(_BACKENDS.values())


def operators() -> tuple[str, ...]:
    """Names of all operators, in alphabetical order."""
    return tuple(sorted(_BACKENDS))


def choose(operator: str, *args: Any, backend: str | None = None) -> Backend:
    """The backend to use for ``operator`` on ``args``.

    Args:
        operator: Registered name.
        args: The positional arguments of its backends.
        backend: Name of the backend to use; None takes ``MMLK_BACKEND`` or the first that can.

    Raises:
        ValueError: if the named backend does not exist.
        RuntimeError: if the named backend refuses these arguments, with its reason.
    """
    candidates = _BACKENDS[operator]
    name = backend or _forced()
    if name:
        for each in candidates:
            if each.name == name:
                reason = each.refusal(*args)
                if reason is not None:
                    raise RuntimeError(
                        f'{operator}: backend {name!r} was asked for but {reason}; leave the '
                        f"backend open or take 'reference'"
                    )
                return each
        if backend or name not in PREFERENCE:
            raise ValueError(
                f'{operator}: unknown backend {name!r}, '
                f'choose from {[each.name for each in candidates]}'
            )
    for each in candidates:
        if each.refusal(*args) is None:
            return each
    raise AssertionError(f'{operator}: the reference refuses')  # it takes whatever torch takes


def run(operator: str, *args: Any, backend: str | None = None) -> Any:
    """``operator`` of ``args``, computed by the backend that `choose` names.

    Raises:
        RuntimeError: If a backend is named that refuses, or the storage of an operand was freed.
    """
    if not torch.compiler.is_compiling() and not _transforms():
        library.check_memory(operator, args)
    return choose(operator, *args, backend=backend).run(*args)


def accelerated(operator: str, *args: Any) -> Callable[..., Any] | None:
    """The computation that stands for a chain of layers, or None if the layers are to be called.

    A forced backend that refuses is no error here: the layers' own operators obey it.
    """
    name = _forced()
    if not torch.compiler.is_compiling() and not _transforms():
        library.check_memory(operator, args)
    for each in _BACKENDS[operator]:
        if each.name == 'reference':
            return None
        if (not name or each.name == name) and each.refusal(*args) is None:
            return each.run
    return None


def explain(operator: str | Callable, *args: Any, backend: str | None = None, **kwargs: Any) -> str:
    """Say, backend by backend, which one a call would use and why the others do not apply.

    Args:
        operator: The public function, or its name.
        args: Its arguments, positional or by name.
        backend: As in the call.

    Returns:
        One line per backend: ``name: used`` or ``name: not used, reason``.

    Raises:
        ValueError: If there is no such operator, or the arguments do not fit it.
    """
    name = operator if isinstance(operator, str) else operator.__name__
    if name not in _BACKENDS:
        raise ValueError(
            f'explain: {name!r} is not an operator with backends, choose from {sorted(_BACKENDS)}'
        )
    args = _ARGUMENTS[name](*args, **kwargs)
    forced = backend or _forced()
    if forced not in backends(name):
        forced = None
    lines, taken = [], False
    for each in _BACKENDS[name]:
        reason = each.refusal(*args)
        if reason is not None:
            lines.append(f'{each.name}: not used, {reason}')
        elif forced and each.name != forced:
            lines.append(f'{each.name}: not used, {forced!r} is forced')
        elif taken:
            lines.append(f'{each.name}: not used, an earlier backend was')
        else:
            taken = True
            detail = f' ({each.describe(*args)})' if each.describe else ''
            lines.append(f'{each.name}: used{detail}')
    return '\n'.join(lines)


def refusal_to_gain(operator: str, *args: Any) -> str | None:
    """Reason why ``operator`` is not expected to be faster than its reference on ``args``, or None.

    Args:
        operator: Registered name.
        args: The arguments of the public function.

    Raises:
        ValueError: If the arguments do not fit the operator.
    """
    args = _ARGUMENTS[operator](*args)
    chosen = choose(operator, *args)
    if chosen.name == 'reference':
        reasons = (
            f'{each.name}: {each.refusal(*args) or "another backend is forced"}'
            for each in _BACKENDS[operator]
            if each.name != 'reference'
        )
        return '; '.join(reasons)
    return None if chosen.refusal_to_gain is None else chosen.refusal_to_gain(*args)


@compat.assume_constant  # some versions of the compiler cannot read a variable that is not set
def _forced() -> str | None:
    """Backend that the environment asks for, or None."""
    return compat.environment(ENVIRONMENT)


def no_refusal(*_args: Any) -> None:
    """The predicate of the reference backends: plain torch takes whatever torch takes."""
    return None


def refusal_for_export() -> str | None:
    """Reason why a graph under export must hold plain torch operators only, or None."""
    if compat.is_exporting():
        return 'torch.export is running and its graph shall hold plain torch operators'
    if torch.jit.is_tracing():  # ONNX's older exporter traces, its newer one goes by torch.export
        return 'torch.jit or ONNX tracing is running and its graph shall hold plain operators'
    return None


def refusal_for_device(x: Tensor, device: str, *operands: Tensor | None) -> str | None:
    """Reason why a backend of ``device`` cannot take ``x`` and what goes with it, or None."""
    place = x.device
    if place.type != device:
        return f'the input is on {place.type}'
    compiling = torch.compiler.is_compiling()
    for each in (x, *operands):
        if each is None:
            continue
        if each is not x and each.device != place:
            return f'the input is on {place} but an operand on {each.device}'
        # The compiler has no negated views, and cannot trace the question.
        if not compiling and each.is_neg():
            return 'the elements of an operand are kept negated'
    return refusal_for_export() or _refusal_for_transform()


def refusal_to_fuse(*maps: Tensor) -> str | None:
    """Reason why layers on float32 maps must be called one by one on a CPU, or None.

    The maps have to be channels-last: their pixels are the rows of a matrix then.
    """
    for x in maps:
        if x.device.type != 'cpu' or x.dtype != torch.float32:
            return f'a map is {x.dtype} on {x.device.type}, only float32 on the CPU is fused'
        if needs_dispatcher(x):
            return 'a compiler, autocast, a dispatch mode or a subclass has to see the layers'
        if x.is_neg():
            return 'the elements of a map are kept negated'
        if not channels_last(x):
            return 'a map is not channels-last'
        if x.numel() == 0:
            return 'a map is empty'
    return refusal_for_export() or _refusal_for_transform()


def needs_dispatcher(x: Tensor, autocast: bool = True) -> bool:
    """Whether a compiler, autocast, a dispatch mode or a kind of tensor must see an operator.

    Otherwise a backend may call its kernels through an autograd node of its own (`library.node`):
    autograd through a registered operator costs half a millisecond of Python a call, more than the
    arithmetic of most small maps.

    Args:
        x: Map of the operator.
        autocast: Whether autocast counts; a backend may cast the map itself.
    """
    return (
        torch.compiler.is_compiling()
        or type(x) not in library.PLAIN
        or x.is_meta
        or autocast
        and torch.is_autocast_enabled('cpu' if x.is_cpu else x.device.type)
        or recording.is_watched()
    )


def _transforms() -> bool:
    """Whether a torch.func transform is active: its tensors have no memory to look at."""
    return compat.top_transform() is not None


def _refusal_for_transform() -> str | None:
    if torch.compiler.is_dynamo_compiling():
        return None
    if _transforms():
        return 'a torch.func transform is active'
    if compat.in_forward_mode():
        return 'forward-mode differentiation is active'
    return None
