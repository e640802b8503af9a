"""The steps of a recorded run, to be repeated on other inputs of the same form.

Launches that follow each other are one call of machine code, without Python or its lock in between.
Intermediate results are in one piece of memory (`mmlk.ops.jit.arena`), or were made by operators of
torch; what is returned has memory of its own.
"""

from __future__ import annotations

import array
import ctypes
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmlk.ops.jit import arena, engine
from mmlk.ops.jit.recording import (
    ARENA,
    SLOT,
    Block,
    Launch,
    Operand,
    Operation,
    Recorder,
    Unrepeatable,
    mapped,
)

LARGEST = 256 << 20
"""Bytes of intermediate results up to which a plan is made: with more, the time of Python is none."""

_SERIES = """
define void @"plan_series"(ptr %words) {
  %count = load i64, ptr %words
  %place = getelementptr i64, ptr %words, i64 1
  %team = load ptr, ptr %place
  br label %head
head:
  %index = phi i64 [ 0, %0 ], [ %next, %done ]
  %more = icmp slt i64 %index, %count
  br i1 %more, label %body, label %end
body:
  %skip = mul i64 %index, 3
  %first = add i64 %skip, 2
  %entry = getelementptr i64, ptr %words, i64 %first
  %function = load ptr, ptr %entry
  %behind = getelementptr i64, ptr %entry, i64 1
  %arguments = load ptr, ptr %behind
  %last = getelementptr i64, ptr %entry, i64 2
  %threads = load i64, ptr %last
  %workers = getelementptr i64, ptr %arguments, i64 2
  store i64 0, ptr %arguments
  store i64 0, ptr %workers
  %alone = icmp eq i64 %threads, 1
  br i1 %alone, label %one, label %many
one:
  call void %function(ptr %arguments)
  br label %done
many:
  %number = trunc i64 %threads to i32
  call void %team(ptr %function, ptr %arguments, i32 %number, i32 0)
  br label %done
done:
  %next = add i64 %index, 1
  br label %head
end:
  ret void
}
"""
"""A series of launches. Its words: their number, the function that enters with several threads, and of
each launch the function, its words and its threads."""


@engine.once
def _series() -> engine.Compiled:
    return engine.compile_module(_SERIES, 'plan_series')


@engine.once
def _team() -> int:
    """Address of the function that enters another one with several threads; 0 if there is none."""
    enter = engine.openmp()
    return 0 if enter is None else ctypes.cast(enter, ctypes.c_void_p).value


class _Call(NamedTuple):
    """A call of an operator of torch.

    Attributes:
        function: The overload.
        args: Arguments, an `Operand` for each tensor that is in a slot.
        options: The same by name.
        varies: Whether there is such a tensor.
        slots: Slot of each result, None for one that is not needed.
    """

    function: Callable
    args: tuple
    options: dict
    varies: bool
    slots: tuple[int | None, ...]


class Plan:
    """Repeats what a recorder has seen. One thread at a time may call it.

    Args:
        recorder: After the run.
        outputs: What the run returned.

    Attributes:
        nbytes: Bytes of the intermediate results, which it holds between calls.
        launches: Launches of compiled loops in a call.
        series: Calls of machine code in which they are made.
        operators: Calls of torch's operators.

    Raises:
        Unrepeatable: If the run cannot be repeated.
    """

    def __init__(self, recorder: Recorder, outputs: Sequence[Tensor]):
        if recorder.reason is not None:
            raise Unrepeatable(recorder.reason)
        self._kept, self._fresh, self._returned = recorder.kept, [], []
        for each in outputs:
            self._add_output(recorder, each)
        self._patches: list[list[tuple[int, int]]] = [[] for _ in range(recorder.slots)]
        self._place_blocks(recorder.allocated)
        starts = self._write_words(recorder.steps)
        self._steps = self._written_steps(recorder.steps, starts)
        self._run = _series()._run
        self.launches = len(starts)
        self.operators = len(recorder.steps) - self.launches

    def _add_output(self, recorder: Recorder, tensor: Tensor) -> None:
        block = recorder.find(tensor.data_ptr())
        if block.role == ARENA:
            size = tensor.numel() * tensor.element_size()
            if block.begin != tensor.data_ptr() or block.end - block.begin != size:
                raise Unrepeatable('a part of an intermediate result is returned')
            recorder.move_to_slot(block, tensor)
            self._fresh.append((block.slot, *block.form))
        output = recorder.operand(tensor)
        if not isinstance(output, Operand) or block.slot == 0:
            raise Unrepeatable('the input or a parameter is returned')
        self._returned.append(output)

    def _place_blocks(self, blocks: Sequence[Block]) -> None:
        """Give intermediate results their places in the memory of the plan."""
        blocks = [each for each in blocks if each.role == ARENA and each.first is not None]
        lifetimes = [
            arena.Lifetime(each.end - each.begin, each.first, each.last) for each in blocks
        ]
        offsets, self.nbytes = arena.arranged(lifetimes)
        if self.nbytes > LARGEST:
            raise Unrepeatable(
                f'its intermediate results take {self.nbytes >> 20} MB, more than {LARGEST >> 20}'
            )
        # A plan made in inference mode may be used outside of it.
        with torch.inference_mode(False):
            memory = torch.empty(self.nbytes + arena.ALIGNMENT, dtype=torch.uint8, device='cpu')
        skipped = -memory.data_ptr() % arena.ALIGNMENT
        self._memory = memory
        self._offsets = {block: skipped + each for block, each in zip(blocks, offsets)}

    def _write_words(self, steps: Sequence) -> dict[int, int]:
        """Write the words of all launches; where those of each step begin."""
        starts, words = {}, array.array('q')
        for number, step in enumerate(steps):
            if not isinstance(step, Launch):
                continue
            if step.threads > 1 and not _team():
                raise Unrepeatable("torch's threads cannot be entered from machine code here")
            starts[number] = start = len(words)
            words.extend((0, step.tasks, 0, *step.arguments))
            for position, block, distance in step.places:
                index = start + engine.HEADER + position
                if block.role == ARENA:
                    words[index] = self._memory.data_ptr() + self._offsets[block] + distance
                else:
                    self._patches[block.slot].append((index, distance))
        self._words = words
        return starts

    def _written_steps(self, steps: Sequence, starts: dict[int, int]) -> list[tuple]:
        """What a call does one after the other: series of launches or a call, and slots to empty."""
        written, self._tables = [], []
        base, _ = self._words.buffer_info()
        last = _last_uses(steps)
        for is_launch, group in itertools.groupby(enumerate(steps), lambda each: each[0] in starts):
            if is_launch:
                group = list(group)
                table = array.array('q', (len(group), _team()))
                for number, step in group:
                    table.extend((step.function, base + 8 * starts[number], step.threads))
                self._tables.append(table)
                written.append((table.buffer_info()[0], None, [number for number, _ in group]))
            else:
                written += [(0, self._call(step), [number]) for number, step in group]
        self.series = len(self._tables)
        kept = {each.block.slot for each in self._returned}
        return [
            (
                table,
                call,
                [slot for each in numbers for slot in last.get(each, ()) if slot not in kept],
            )
            for table, call, numbers in written
        ]

    def _call(self, step: Operation) -> _Call:
        args, options = self._placed(step.args), self._placed(step.options)
        return _Call(
            step.function,
            args,
            options,
            any(True for _ in _operands((args, options))),
            tuple(None if each is None else each.slot for each in step.results),
        )

    def _placed(self, value: Any) -> Any:
        """Arguments with tensors in place of operands that have a place in the memory of the plan."""
        if isinstance(value, Operand):
            if value.block.role != ARENA:
                return value
            with torch.inference_mode(False):
                result = torch.empty(0, dtype=value.dtype, device='cpu')
                first = self._offsets[value.block] // result.element_size() + value.offset
                return result.set_(self._memory.untyped_storage(), first, value.size, value.stride)
        return mapped(self._placed, value)

    def __call__(self, x: Tensor) -> list[Tensor]:
        """What the recorded run would return for ``x``, which has the form of its input."""
        slots: list[Tensor | None] = [None] * len(self._patches)
        self._fill(slots, 0, x)
        for slot, size, stride, dtype in self._fresh:
            self._fill(slots, slot, torch.empty_strided(size, stride, dtype=dtype, device='cpu'))
        for table, call, emptied in self._steps:
            if call is None:
                self._run(table)
            else:
                self._repeat(call, slots)
            for slot in emptied:
                slots[slot] = None
        return _filled(self._returned, slots)

    def _fill(self, slots: list, slot: int, tensor: Tensor) -> None:
        """Put a tensor into a slot, and its address into the words of the launches that use it."""
        slots[slot], words = tensor, self._words
        address = tensor.data_ptr()
        for index, distance in self._patches[slot]:
            words[index] = address + distance

    def _repeat(self, call: _Call, slots: list) -> None:
        args, options = call.args, call.options
        if call.varies:
            args, options = _filled(args, slots), _filled(options, slots)
        results = call.function(*args, **options)
        if isinstance(results, Tensor):
            results = (results,)
        for slot, result in zip(call.slots, results):
            if slot is not None:
                self._fill(slots, slot, result)


def _filled(value: Any, slots: list) -> Any:
    """Arguments with the tensors of the slots in place of operands."""
    if type(value) is Operand:
        tensor = slots[value.block.slot]
        if value.is_whole:
            return tensor
        return tensor.as_strided(value.size, value.stride, tensor.storage_offset() + value.offset)
    return mapped(lambda each: _filled(each, slots), value)


def _operands(value: Any) -> Iterator[Operand]:
    if isinstance(value, Operand):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _operands(each)
    elif isinstance(value, dict):
        yield from _operands(list(value.values()))


def _last_uses(steps: Sequence) -> dict[int, set[int]]:
    """Slots that no later step uses, by the number of the step."""
    blocks: set[Block] = set()
    for step in steps:
        if isinstance(step, Launch):
            blocks.update(block for _, block, _ in step.places)
        else:
            blocks.update(each for each in step.results if each is not None)
            blocks.update(each.block for each in _operands((step.args, step.options)))
    last: dict[int, set[int]] = {}
    for block in blocks:
        if block.role == SLOT:
            last.setdefault(block.last, set()).add(block.slot)
    return last
