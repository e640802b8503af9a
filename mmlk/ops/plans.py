"""Repeated inference on a CPU: a computation is recorded once and repeated without Python.

Most of the time of a folded network on small maps is Python between its layers. `record` runs a
computation and makes a `Plan` of the launches and operators that it saw; calling the plan repeats them
for another input of the same form. Who keeps a plan asks in each call whether it still applies:
`refusal` and `settings` say what operators depend on; `mmlk.networks.plans` knows the modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from mmlk.ops import compat, dispatch, jit
from mmlk.ops.jit import checks, recording
from mmlk.ops.jit.plan import Plan
from mmlk.ops.jit.recording import has_memory

ENVIRONMENT = 'MMLK_PLAN'

__all__ = ['Plan', 'has_memory', 'record', 'refusal', 'settings']


def refusal(x: Tensor) -> str | None:
    """Reason why a computation on ``x`` must not be recorded or repeated now, or None."""
    if torch.compiler.is_compiling():
        return 'a compiler traces the network'
    if torch.is_grad_enabled():
        return 'gradients may be asked for'
    if compat.environment(ENVIRONMENT) == '0':
        return f'{ENVIRONMENT}=0'
    if checks.ENABLED:
        return f'{checks.ENVIRONMENT}=1, and repeated launches are not checked'
    if compat.top_transform() is not None or compat.in_forward_mode():
        return 'a torch.func transform or forward-mode differentiation is active'
    if not has_memory(x) or not x.is_cpu or x.dtype is not torch.float32:
        return f'the image is a {type(x).__name__}, {x.dtype}, {x.layout}, on {x.device.type}'
    if x.is_neg() or x.numel() == 0 or x.data_ptr() == 0:
        return 'the image has no elements, or they are kept negated'
    if dispatch.needs_dispatcher(x) or compat.count_function_modes() > 0:
        return 'autocast or a mode of torch has to see the layers'
    return dispatch.refusal_for_export() or jit.refusal()


def settings() -> tuple:
    """What operators depend on beside tensors: a plan is for one value of it."""
    return (
        compat.environment(dispatch.ENVIRONMENT),
        torch.get_num_threads(),
        torch.is_inference_mode_enabled(),
        torch.backends.mkldnn.enabled,
        dispatch.registered(),
    )


def record(
    function: Callable[[Tensor], Sequence[Tensor]], x: Tensor, constants: Iterable[Tensor]
) -> tuple[Sequence[Tensor], Plan | str | None, list]:
    """Run ``function`` on ``x``, and make a plan of what it did.

    Args:
        function: Depends on nothing but its argument, ``constants``, and what `refusal` and `settings`
            tell.
        x: Of which `refusal` is None.
        constants: Tensors that stay where they are; values may be written to them.

    Returns:
        What ``function`` returned; the plan, the reason why there is none, or None if weights were
        reordered and the next run can be recorded; and the copies of weights that it uses,
        `mmlk.ops.packed_weights.Derived`.
    """
    recorder = recording.Recorder(x, constants)
    outputs = recorder.run(function, x)
    if recorder.is_first:
        return outputs, None, []
    try:
        return outputs, Plan(recorder, outputs), recorder.derived
    except recording.Unrepeatable as error:
        return outputs, str(error), []
