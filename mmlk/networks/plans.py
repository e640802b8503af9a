"""Plans of a folded network (`mmlk.ops.plans`), and whether they still apply.

A plan replaces all Python of a network, so nothing that Python would have noticed may have changed: every
pass compares the modules, their attributes, hooks and parameters with those of the recorded pass.
Whatever is new, the modules are called one by one, as ever, and plans are made again later.
"""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mmlk.ops import compat, plans
from mmlk.ops.modules import can_stand_for

PLANS = 4
"""Plans that a network keeps: one for each form of its images, those used last."""

FORMS = 64
"""Forms of images that it has in mind: a plan is made when one comes again."""

LONGEST = 64
"""Passes, at most, from a change of the network to a new plan: they double with each change."""

_HOOKS = '_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks'
_PARTS = '_parameters', '_buffers', '_modules'


class Plans:
    """The plans of one network; copies and pickles of it have none.

    One thread at a time uses them. Others, at the same time, call the modules.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wait = 1
        self.clear()

    def __reduce__(self) -> tuple:
        return Plans, ()

    def clear(self) -> None:
        """Forget all plans, and free their memory."""
        self._state: _State | None = None
        self._entries: OrderedDict[tuple, _Entry] = OrderedDict()

    def run(self, network: nn.Module, x: Tensor, compute: Callable) -> Sequence[Tensor]:
        """``compute(x)``, the pass of ``network``, repeated from a plan if there is one."""
        if plans.refusal(x) is not None or not self._lock.acquire(blocking=False):
            return compute(x)
        try:
            entry = self._entry(network, x)
            if isinstance(entry.plan, plans.Plan):
                return tuple(entry.plan(x))
            entry.passes += 1
            if entry.plan is not None or entry.passes <= self._wait:
                return compute(x)
            return self._record(network, entry, x, compute)
        finally:
            self._lock.release()

    def explain(self, network: nn.Module, x: Tensor) -> str:
        """Whether the next pass of ``x`` is repeated from a plan, and why not."""
        reason = plans.refusal(x)
        if reason is not None:
            return f'not used, {reason}'
        entry = self._entries.get(_key(x))
        if entry is None or self._state is None or not self._state.holds(network):
            return f'not used yet, the network has to run {self._wait + 1} times on such images first'
        if entry.plan is None:
            left = self._wait + 1 - entry.passes
            return f'not used yet, the network has to run {left} times on such images first'
        if isinstance(entry.plan, str):
            return f'not used, {entry.plan}'
        if not entry.holds(self._state):
            return 'not used, a parameter has changed'
        plan = entry.plan
        return (
            f'used ({plan.launches} launches of compiled loops in {plan.series} series, '
            f'{plan.operators} operators of torch, {plan.nbytes / 2**20:.1f} MB)'
        )

    def _entry(self, network: nn.Module, x: Tensor) -> _Entry:
        """What is known of images of this form."""
        entry = self._entries.get(key := _key(x))
        if self._state is None or not self._state.holds(network):
            self._forget()
            self._state = _State(network)
            entry = None
        elif entry is not None and not entry.holds(self._state):
            self._forget()
            self._state = _State(network)
            entry = None
        if entry is None:
            entry = self._entries[key] = _Entry()
            while len(self._entries) > FORMS:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        return entry

    def _forget(self) -> None:
        """Drop plans of a network that has changed; make others later, if it changes often."""
        if any(isinstance(each.plan, plans.Plan) for each in self._entries.values()):
            self._wait = min(2 * self._wait, LONGEST)
        self.clear()

    def _record(
        self, network: nn.Module, entry: _Entry, x: Tensor, compute: Callable
    ) -> Sequence[Tensor]:
        entry.plan = _refusal(network)
        if entry.plan is not None:
            return compute(x)
        outputs, entry.plan, derived = plans.record(compute, x, self._state.tensors())
        entry.derived = [(each, self._state.index(each.weight)) for each in derived]
        made = [each for each in self._entries.values() if isinstance(each.plan, plans.Plan)]
        for each in made[:-PLANS]:
            each.forget()
        return outputs


class _Entry:
    """Images of one form.

    Attributes:
        passes: Passes without a plan.
        plan: The plan, the reason why there is none, or None if it is to be made.
        derived: The copies of weights that it uses, and the number of each one's weight.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Back to the beginning."""
        self.passes, self.plan, self.derived = 0, None, []

    def holds(self, state: _State) -> bool:
        """Whether the copies are those of the weights as they are."""
        tensors = state.tensors() if self.derived else []
        return all(
            each.copies.holds(each.name, each.kept, tensors[index]) for each, index in self.derived
        )


class _State:
    """The modules of a network, to be asked later whether they are what they were.

    It holds no parameter, which could not be exchanged then (`torch.utils.swap_tensors`), and not the
    network, which would not be freed.
    """

    def __init__(self, network: nn.Module):
        modules = list(network.modules())
        self._modules = modules[1:]
        self._parts = [getattr(each, name) for each in self._modules for name in _PARTS]
        self._hooks = [getattr(each, name) for each in self._modules for name in _HOOKS]
        self._places = [
            (table, name)
            for each in modules
            for table in (each._parameters, each._buffers)
            for name, tensor in table.items()
            if tensor is not None
        ]
        # What is compared by its identity has to stay alive; parameters are told by their memory.
        self._held = [
            value
            for each in modules
            for value in each.__dict__.values()
            if not isinstance(value, Plans)
        ]
        self._aliases = [tensor.detach() for tensor in self.tensors()]
        self._forms = [_form(tensor) for tensor in self.tensors()]
        self._kinds, self._identities = self._look(network)

    def tensors(self) -> list[Tensor]:
        """Parameters and buffers, as long as the state holds."""
        return [table[name] for table, name in self._places]

    def index(self, tensor: Tensor) -> int:
        """Number of one of `tensors`."""
        return next(i for i, each in enumerate(self.tensors()) if each is tensor)

    def holds(self, network: nn.Module) -> bool:
        """Whether every module is the same object of the same class, with the same attributes."""
        if any(self._hooks) or compat.has_global_hooks():
            return False
        kinds, identities = self._look(network)
        if kinds != self._kinds or identities != self._identities:
            return False
        return all(map(operator.eq, map(_form, self.tensors()), self._forms))

    def _look(self, network: nn.Module) -> tuple[list, list]:
        root = [network.__dict__, *(getattr(network, name) for name in _PARTS)]
        tables = chain(root, map(vars, self._modules), self._parts)
        return (
            [type(network), *map(type, self._modules)],
            list(map(id, chain.from_iterable(map(dict.values, tables)))),
        )


def _form(tensor: Tensor) -> tuple:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_neg()


def _key(x: Tensor) -> tuple:
    return x.shape, x.stride(), plans.settings()


def _refusal(network: nn.Module) -> str | None:
    """Reason why the modules of a network have to be called, or None."""
    if not type(network).__module__.startswith('mmlk.'):
        return f'{type(network).__name__} is not a class of this package'
    for name, module in network.named_modules():
        if module.training:
            return f'{name or "the network"} is in training mode'
        if name and not can_stand_for(module):
            return f'hooks watch {name}, its forward has been replaced, or it is of another package'
    return None
