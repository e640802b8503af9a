"""Plans of a folded network (`mmlk.ops.plans`), and whether they still apply.

A plan replaces all Python of a network, so nothing that Python would have noticed may have changed:
every pass compares the modules, their attributes, hooks and parameters with those of the recorded
pass. Whatever is new, the modules are called one by one, as ever, and plans are made again later.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from itertools import chain

from torch import Tensor, nn

from mmlk.ops import compat, plans
from mmlk.ops.modules import can_stand_for

PLANS = 4
"""Plans that a network keeps: one for each form of its images, those used last."""

FORMS = 64
"""Forms of images that it has in mind: a plan is made when one comes again."""

LONGEST = 64
"""Passes, at most, from a change of the network to a new plan: they double with each change."""


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

    def run(self, network: nn.Module, x: Tensor, compute: Callable) -> tuple[Tensor, ...]:
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
        passes = self._wait + 1
        if entry is None or self._state is None or not self._state.holds(network):
            return f'not used yet, the network makes a plan in {passes} passes of such images'
        if entry.plan is None:
            left = max(passes - entry.passes, 1)
            return f'not used yet, the network makes a plan in {left} passes of such images'
        if isinstance(entry.plan, str):
            return f'not used, {entry.plan}'
        if not entry.holds(self._state):
            return f'not used yet, a weight has changed: a new plan takes {passes} passes'
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
    ) -> tuple[Tensor, ...]:
        entry.plan = _refusal(network)
        if entry.plan is not None:
            return compute(x)
        outputs, entry.plan, derived = plans.record(compute, x, self._state.tensors())
        entry.derived = [(each, self._state.index(each.weight)) for each in derived]
        made = [each for each in self._entries.values() if isinstance(each.plan, plans.Plan)]
        for each in made[:-PLANS]:
            each.forget()
        return tuple(outputs)


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
        self.passes = 0
        self.plan: plans.Plan | str | None = None
        self.derived: list[tuple] = []

    def holds(self, state: _State) -> bool:
        """Whether the copies are those of the weights as they are."""
        tensors = state.tensors() if self.derived else []
        return all(
            each.copies.holds(each.name, each.kept, tensors[index]) for each, index in self.derived
        )


class _State:
    """The modules of a network, to be asked later whether they are what they were.

    It holds no parameter, which could not be exchanged then (`torch.utils.swap_tensors`), and not the
    network, which would not be freed. It asks by few calls of C: a network has thousands of attributes.
    """

    def __init__(self, network: nn.Module):
        modules = list(network.modules())
        self._modules = modules[1:]
        self._kinds = list(map(type, self._modules))
        self._attributes = list(map(dict, map(vars, self._modules)))
        self._own = self._of_root(network)
        self._parts = [part for each in modules for part in compat.parts_of(each)]
        self._hooks = [vars(each)[name] for each in self._modules for name in compat.HOOKS]
        self._places = [
            (table, name)
            for each in modules
            for table in compat.parts_of(each)[:2]
            for name, tensor in table.items()
            if tensor is not None
        ]
        self._aliases = [tensor.detach() for tensor in self.tensors()]  # keep the memory in use
        self._forms = _forms(self.tensors())
        self._identities = self._of_parts()

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
        try:
            return (
                self._kinds == list(map(type, self._modules))
                and self._own == self._of_root(network)
                and self._identities == self._of_parts()
                and self._attributes == list(map(vars, self._modules))
                and self._forms == _forms(self.tensors())
            )
        except Exception:  # attributes are compared, of any kind: some have no truth value
            return False

    @staticmethod
    def _of_root(network: nn.Module) -> tuple[type, dict]:
        return type(network), {
            name: value
            for name, value in vars(network).items()
            if name not in compat.HOOKS and not isinstance(value, Plans)
        }

    def _of_parts(self) -> list[int]:
        return list(map(id, chain.from_iterable(map(dict.values, self._parts))))


def _forms(tensors: list[Tensor]) -> list:
    """Memory, shape and dtype of tensors."""
    return [
        list(map(Tensor.data_ptr, tensors)),
        [each.shape for each in tensors],
        list(map(Tensor.stride, tensors)),
        [each.dtype for each in tensors],
        list(map(Tensor.is_neg, tensors)),
    ]


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
