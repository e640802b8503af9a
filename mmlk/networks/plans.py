"""Plans of a folded network (`mmlk.ops.plans`), and whether they still apply.

A plan replaces all Python of a network, so nothing that Python would have noticed may have changed:
every pass compares the modules, their attributes, hooks and parameters with those of the recorded
pass. Whatever is new, the modules are called one by one, as ever, and plans are made again later.
"""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict
from collections.abc import Callable
from itertools import chain
from typing import Any

from torch import Tensor, nn

from mmlk.ops import compat, plans
from mmlk.ops.modules import can_stand_for

PLANS = 4
"""Plans that a network keeps: one for each form of its images, those used last."""

FORMS = 64
"""Forms of images that it has in mind: a plan is made when one comes again."""

LONGEST = 64
"""Passes, at most, before a plan: they double with each change of the network, and with each plan that
gives way to another one. Making a plan takes as long as two passes."""


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
        """Forget all plans, and free their memory; other threads may be using them."""
        self._state: _State | None = None

    def run(self, network: nn.Module, x: Tensor, compute: Callable) -> tuple[Tensor, ...]:
        """``compute(x)``, the pass of ``network``, repeated from a plan if there is one."""
        if plans.refusal(x) is not None or not self._lock.acquire(blocking=False):
            return compute(x)
        try:
            state, entry = self._current(network, x)
            if isinstance(entry.plan, plans.Plan):
                return tuple(entry.plan(x))
            entry.passes += 1
            if entry.plan is not None or entry.passes <= self._wait:
                return compute(x)
            return self._record(network, state, entry, x, compute)
        finally:
            self._lock.release()

    def explain(self, network: nn.Module, x: Tensor) -> str:
        """Whether the next pass of ``x`` is repeated from a plan, and why not."""
        reason = plans.refusal(x)
        if reason is not None:
            return f'not used, {reason}'
        state, passes = self._state, self._wait + 1
        entry = None if state is None else state.entries.get(_key(x))
        if state is None or entry is None or not state.holds(network):
            return f'not used yet, the network makes a plan in {passes} passes of such images'
        if entry.plan is None:
            left = max(passes - entry.passes, 1)
            return f'not used yet, the network makes a plan in {left} passes of such images'
        if isinstance(entry.plan, str):
            return f'not used, {entry.plan}'
        if not entry.holds(state):
            return f'not used yet, a weight has changed: a new plan takes {passes} passes'
        plan = entry.plan
        return (
            f'used ({plan.launches} launches of compiled loops in {plan.series} series, '
            f'{plan.operators} operators of torch, {plan.nbytes / 2**20:.1f} MB)'
        )

    def _current(self, network: nn.Module, x: Tensor) -> tuple[_State, _Entry]:
        """The network as it is, and what is known of images of this form."""
        state, key = self._state, _key(x)
        entry = None if state is None else state.entries.get(key)
        if state is None or not state.holds(network) or not (entry is None or entry.holds(state)):
            if state is not None and any(each.has_plan for each in state.entries.values()):
                self._wait_longer()
            state, entry = _State(network), None
            self._state = state
        if entry is None:
            entry = state.entries[key] = _Entry()
            while len(state.entries) > FORMS:
                state.entries.popitem(last=False)
        state.entries.move_to_end(key)
        return state, entry

    def _wait_longer(self) -> None:
        """Make plans later: one was made in vain."""
        self._wait = min(2 * self._wait, LONGEST)

    def _record(
        self, network: nn.Module, state: _State, entry: _Entry, x: Tensor, compute: Callable
    ) -> tuple[Tensor, ...]:
        entry.plan = _refusal(network)
        if entry.plan is not None:
            return compute(x)
        outputs, entry.plan, derived = plans.record(compute, x, state.tensors())
        entry.derived = [(each, state.index(each.weight)) for each in derived]
        made = [each for each in state.entries.values() if each.has_plan]
        for each in made[:-PLANS]:
            each.forget()
            self._wait_longer()
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

    @property
    def has_plan(self) -> bool:
        """Whether there is a plan."""
        return isinstance(self.plan, plans.Plan)

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

    Attributes:
        entries: What is known of images of this network by their form, those used last at the end.
    """

    def __init__(self, network: nn.Module):
        self.entries: OrderedDict[tuple, _Entry] = OrderedDict()
        modules = list(network.modules())
        self._modules = modules[1:]
        self._kinds = list(map(type, self._modules))
        kinds = {type(each): None for each in modules}
        self._classes = [vars(each) for each in {c: None for kind in kinds for c in kind.__mro__}]
        self._of_classes = list(map(dict, self._classes))
        self._attributes = [_as_they_are(vars(each)) for each in self._modules]
        kind, own = self._of_root(network)
        self._own = kind, _as_they_are(own)
        self._tables = _tables(modules)
        self._names = list(chain.from_iterable(self._tables))
        self._hooks = [vars(each)[name] for each in self._modules for name in compat.HOOKS]
        self._places = [
            (table, name)
            for each in modules
            for table in compat.parts_of(each)[:2]
            for name, tensor in table.items()
            if tensor is not None and plans.has_memory(tensor)
        ]
        self._aliases = [tensor.detach() for tensor in self.tensors()]  # keep the memory in use
        self._forms = _forms(self.tensors())
        self._identities = self._of_tables()

    def tensors(self) -> list[Tensor]:
        """Parameters and buffers that have memory, as long as the state holds."""
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
                and self._of_classes == self._classes
                and self._own == self._of_root(network)
                and all(map(operator.is_, self._tables, _tables([network, *self._modules])))
                and self._names == list(chain.from_iterable(self._tables))
                and self._identities == self._of_tables()
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

    def _of_tables(self) -> list[int]:
        return list(map(id, chain.from_iterable(map(dict.values, self._tables))))


_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes of every module: what its tables and hooks hold is asked for one by one."""


def _as_they_are(attributes: dict) -> dict:
    """A copy of attributes, and of lists and dicts among them, which may be changed in place."""
    copied = dict(attributes)
    for name in copied.keys() - _OF_TORCH:
        copied[name] = _copied(copied[name])
    return copied


def _copied(value: Any) -> Any:
    if type(value) is list:
        return [_copied(each) for each in value]
    if type(value) is dict:
        return {name: _copied(each) for name, each in value.items()}
    return value


def _tables(modules: list[nn.Module]) -> list[dict]:
    """The dicts of parameters, buffers and modules: others with equal content may differ in order."""
    return list(chain.from_iterable(map(compat.tables_in, map(vars, modules))))


def _forms(tensors: list[Tensor]) -> list:
    """Class, memory, shape and dtype of tensors."""
    return [
        list(map(type, tensors)),
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
        replaced = _replaced_method(module)
        if replaced is not None:
            return f'{replaced} of {name or "the network"} has been replaced'
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if not plans.has_memory(tensor):
            return (
                f'{name} is a {type(tensor).__name__}, {tensor.layout}, without memory of its own'
            )
    return None


def _replaced_method(module: nn.Module) -> str | None:
    """Name of a method that a module, or its class, has from someone else, or None."""
    kind = type(module)
    for name in vars(module):
        if callable(getattr(kind, name, None)):
            return name
    for each in kind.__mro__:
        packages = ('torch', _package(each.__module__))
        for name, value in vars(each).items():
            written = getattr(value, '__globals__', {}).get('__name__')
            if written is not None and _package(written) not in packages:
                return name
    return None


def _package(module: str) -> str:
    return module.partition('.')[0]
