"""What one run of a computation did: launches of compiled loops, and torch's operators in between.

While a `Recorder` records, in the thread that made it, every launch and every operator of torch is run
as ever and noted as a step, with the memory that it used. `mmlk.ops.jit.plan` repeats the steps. Views
are not noted: only addresses matter. What cannot be repeated safely ends the recording with a reason,
and the run itself goes on.
"""

from __future__ import annotations

import bisect
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmlk.ops import compat

PLAIN = (Tensor, torch.nn.Parameter)

CONSTANT, ARENA, SLOT = 'constant', 'arena', 'slot'
"""Memory that stays, that a plan has a place for, and that is another in each run."""

_ALLOCATES = {
    getattr(torch.ops.aten, name)
    for name in ('empty', 'new_empty', 'empty_like', 'empty_strided', 'new_empty_strided')
}
_NAMESPACES = ('aten', 'mkldnn')
_DEPENDS = {
    getattr(torch.Tag, name)
    for name in (
        'nondeterministic_seeded',
        'data_dependent_output',
        'dynamic_output_shape',
        'inplace_view',
    )
}


class Block:
    """Memory that steps use.

    Attributes:
        begin: Address of its first byte in the recorded run.
        end: Address behind its last byte.
        role: `CONSTANT`, `ARENA` or `SLOT`.
        slot: Number of a `SLOT`.
        form: Sizes, strides and dtype of the tensor that fills a `SLOT`.
        first: The first step that uses it; None before.
        last: The last one.
        was_freed: Tells whether the recorded run has freed it.
    """

    def __init__(self, storage: torch.UntypedStorage, role: str):
        self.begin, self.end, self.role = storage.data_ptr(), 0, role
        self.end = self.begin + storage.nbytes()
        self.was_freed = compat.StorageWeakRef(storage).expired
        self.slot: int | None = None
        self.form: tuple | None = None
        self.first: int | None = None
        self.last = -1


class Operand(NamedTuple):
    """A tensor among the arguments of an operator that does not stay.

    Attributes:
        block: Its memory.
        size: As of the tensor.
        stride: As of the tensor.
        offset: Elements from the first one of the block.
        dtype: As of the tensor.
    """

    block: Block
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @property
    def is_whole(self) -> bool:
        """Whether it is the tensor that fills the slot."""
        return self.offset == 0 and self.block.form == (self.size, self.stride, self.dtype)


class Launch(NamedTuple):
    """A call of compiled loops.

    Attributes:
        function: Address of the machine code.
        threads: Threads that enter it.
        tasks: Number of tasks.
        arguments: Addresses and sizes.
        places: Which of them are addresses: position, block, bytes from its begin.
    """

    function: int
    threads: int
    tasks: int
    arguments: tuple[int, ...]
    places: tuple[tuple[int, Block, int], ...]


class Operation(NamedTuple):
    """A call of an operator of torch.

    Attributes:
        function: The overload.
        args: Arguments, an `Operand` for each tensor that does not stay, in lists too.
        options: The same by name.
        results: The slot of each result, None for one without memory of its own.
    """

    function: Callable
    args: tuple
    options: dict
    results: tuple[Block | None, ...]


class Unrepeatable(Exception):
    """Reason why a recorded run cannot be repeated."""


class _Thread(threading.local):
    recorder: Recorder | None = None


_here = _Thread()


def recorder() -> Recorder | None:
    """What records in this thread, or None."""
    return _here.recorder


def is_watched() -> bool:
    """Whether a dispatch mode, other than that of a recording, has to see torch's operators."""
    return compat.count_dispatch_modes() > (_here.recorder is not None)


def keep(*tensors: Tensor) -> None:
    """Declare tensors that a cache gave to an operator, and that nobody will change."""
    if _here.recorder is not None:
        _here.recorder.keep(*tensors)


class _Mode(compat.TorchDispatchMode):
    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder


def _dispatch(self, function, types, args=(), kwargs=None):
    kwargs = kwargs or {}
    if self.recorder.is_paused:
        return function(*args, **kwargs)
    if function.namespace == 'mmlk':
        with self:
            return compat.computed_on_cpu(function, *args, **kwargs)
    if compat.is_composite(function):
        with self:
            return compat.decomposed(function, *args, **kwargs)
    result = function(*args, **kwargs)
    self.recorder.operator(function, args, kwargs, result)
    return result


_Mode.__torch_dispatch__ = (
    _dispatch  # in the body of the class, torch would import its compiler for it
)


class Recorder:
    """Records the steps of one run in one thread; see the module.

    Args:
        x: What the computation is given; another tensor of the same form in each run.
        constants: Tensors that stay where they are: parameters and buffers.

    Attributes:
        steps: Launches and operators, in their order.
        reason: Why the run cannot be repeated, or None.
        is_first: Whether weights were reordered in the run: another one can be repeated.
        slots: Number of slots; the first is ``x``.
        allocated: Memory of intermediate results.
        kept: Tensors that must stay alive.
        derived: The sources that `note_derived` got.
    """

    def __init__(self, x: Tensor, constants: Iterable[Tensor]):
        self.steps: list[Launch | Operation] = []
        self.reason: str | None = None
        self.slots, self.is_paused, self.is_first = 0, False, False
        self.derived: list[Any] = []
        self.kept: list[Tensor] = []
        self.allocated: list[Block] = []
        self._begins: list[int] = []
        self._blocks: list[Block] = []
        with self._reasons():
            self._keep(constants)
            block = Block(x.untyped_storage(), SLOT)
            block.begin = x.data_ptr()
            self._fill(block, x)

    def run(self, function: Callable, *args: Any) -> Any:
        """``function(*args)``, recorded."""
        outer, _here.recorder = _here.recorder, self
        try:
            with _Mode(self):
                return function(*args)
        finally:
            _here.recorder = outer

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done under ``with`` is not a part of the computation."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    def refuse(self, reason: str) -> None:
        """End the recording."""
        if self.reason is None:
            self.reason = reason

    @contextlib.contextmanager
    def _reasons(self) -> Iterator[None]:
        try:
            yield
        except Unrepeatable as error:
            self.refuse(str(error))

    # Memory ----------------------------------------------------------------------------------------

    def keep(self, *tensors: Tensor) -> None:
        """Declare tensors that stay as they are; the recorder holds them."""
        with self._reasons():
            self._keep(tensors)

    def _keep(self, tensors: Iterable[Tensor]) -> None:
        for each in tensors:
            storage = each.untyped_storage()
            if storage.nbytes():
                known = self._find(storage.data_ptr())
                if known is None or known.role != CONSTANT:
                    self._add(Block(storage, CONSTANT))
                    self.kept.append(each.detach())

    def note_derived(self, source: Any, copy: Any) -> None:
        """Declare a copy of a parameter, and what tells whether it still is one."""
        self.derived.append(source)
        self.keep(*_tensors(copy))

    def _add(self, block: Block) -> Block:
        """Make memory known; what was known of the same place has been freed."""
        first = bisect.bisect_left(self._begins, block.begin)
        if first and self._blocks[first - 1].end > block.begin:
            first -= 1
        end = bisect.bisect_left(self._begins, block.end, lo=first)
        for each in self._blocks[first:end]:
            if each.role == CONSTANT or each.slot == 0:
                raise Unrepeatable('memory of the input or of a parameter is used twice')
        self._begins[first:end], self._blocks[first:end] = [block.begin], [block]
        return block

    def _fill(self, block: Block, tensor: Tensor) -> Block:
        """Make memory known that another tensor has in each run."""
        self.move_to_slot(block, tensor)
        return self._add(block)

    def move_to_slot(self, block: Block, tensor: Tensor) -> None:
        """Have memory be that of another tensor of the form of this one in each run."""
        block.role, block.slot, block.form = SLOT, self.slots, form_of(tensor)
        self.slots += 1

    def _find(self, address: int) -> Block | None:
        index = bisect.bisect_right(self._begins, address) - 1
        if index >= 0 and address < self._blocks[index].end:
            return None if self._blocks[index].was_freed() else self._blocks[index]
        return None

    def find(self, address: int) -> Block:
        """The memory that an address belongs to.

        Raises:
            Unrepeatable: If nothing is known of it.
        """
        found = self._find(address)
        if found is None:
            raise Unrepeatable('memory is used that the recording did not see')
        return found

    def _use(self, address: int) -> Block:
        """`find` for the next step."""
        block, step = self.find(address), len(self.steps)
        block.first = step if block.first is None else block.first
        block.last = step
        return block

    # Steps -----------------------------------------------------------------------------------------

    def launch(
        self,
        function: int,
        threads: int,
        tasks: int,
        arguments: tuple[int, ...],
        addresses: Sequence[int],
    ) -> None:
        """Note a call of compiled loops; ``addresses`` are the positions of addresses."""
        if self.reason is not None:
            return
        if self.is_paused:
            self.is_first = True
            return
        with self._reasons():
            places = []
            for position in addresses:
                address = arguments[position]
                if address:
                    block = self._use(address)
                    if block.role != CONSTANT:
                        places.append((position, block, address - block.begin))
            self.steps.append(Launch(function, threads, tasks, arguments, tuple(places)))

    def operator(self, function: Any, args: tuple, options: dict, result: Any) -> None:
        """Note a call of torch's ``function``."""
        if self.reason is None:
            with self._reasons():
                self._operator(function, args, options, result)

    def _operator(self, function: Any, args: tuple, options: dict, result: Any) -> None:
        results = result if isinstance(result, tuple | list) else (result,)
        if function.namespace not in _NAMESPACES or not all(
            isinstance(each, Tensor) for each in results
        ):
            raise Unrepeatable(f'{function} is not an operator that a plan repeats')
        if function.overloadpacket in _ALLOCATES:
            for each in results:
                storage = each.untyped_storage()
                if storage.nbytes():
                    self.allocated.append(self._add(Block(storage, ARENA)))
            return
        given = list(_tensors((*args, *options.values())))
        storages = {each.untyped_storage().data_ptr() for each in given}
        if not compat.is_mutable(function) and all(
            each.untyped_storage().data_ptr() in storages for each in results
        ):
            return  # a view
        if _DEPENDS.intersection(function.tags):
            raise Unrepeatable(f'{function} draws random numbers, or depends on values')
        for each in _tensors(compat.written_arguments(function, args, options)):
            if each.untyped_storage().nbytes():
                block = self.find(each.data_ptr())
                if block.role == CONSTANT or block.slot == 0:
                    raise Unrepeatable(f'{function} writes to the input, or to a parameter')
        args, options = self._operands(args), self._operands(options)
        blocks = tuple(self._result(each, storages) for each in results)
        self.steps.append(Operation(function, args, options, blocks))

    def _result(self, tensor: Tensor, storages: set[int]) -> Block | None:
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0 or storage.data_ptr() in storages:
            return None
        if type(tensor) not in PLAIN or not tensor.is_cpu or tensor.storage_offset():
            raise Unrepeatable('an operator makes a tensor of another kind')
        block = self._fill(Block(storage, SLOT), tensor)
        block.first = block.last = len(self.steps)
        return block

    def _operands(self, value: Any) -> Any:
        """Arguments with an `Operand` in place of each tensor that does not stay."""
        return self.operand(value) if isinstance(value, Tensor) else mapped(self._operands, value)

    def operand(self, tensor: Tensor) -> Operand | Tensor:
        """What the next step gets for a tensor; the tensor itself if it stays.

        Raises:
            Unrepeatable: If it is of another kind, or nothing is known of its memory.
        """
        if not has_memory(tensor) or not tensor.is_cpu or tensor.is_neg() or tensor.is_conj():
            raise Unrepeatable('an operator is given a tensor of another kind')
        if tensor.numel() == 0:
            return tensor.detach()
        block = self._use(tensor.data_ptr())
        if block.role == CONSTANT:
            return tensor.detach()
        offset, rest = divmod(tensor.data_ptr() - block.begin, tensor.element_size())
        if rest or block.form is not None and block.form[2] != tensor.dtype:
            raise Unrepeatable('an operator is given a tensor as another dtype than it has')
        return Operand(block, tuple(tensor.shape), tensor.stride(), offset, tensor.dtype)


def has_memory(tensor: Tensor) -> bool:
    """Whether address, sizes and strides of a tensor can be asked, and tell where its elements are."""
    return type(tensor) in PLAIN and tensor.layout is torch.strided and not tensor.is_nested


def form_of(tensor: Tensor) -> tuple:
    """Sizes, strides and dtype."""
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def mapped(function: Callable, value: Any) -> Any:
    """``function`` of what a tuple, list or dict holds; anything else as it is."""
    if type(value) is tuple:
        return tuple([function(each) for each in value])
    if type(value) is list:
        return [function(each) for each in value]
    if type(value) is dict:
        return {name: function(each) for name, each in value.items()}
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
