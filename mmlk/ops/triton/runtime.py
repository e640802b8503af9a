"""What all Triton kernels share: availability, launching, compile lock, configurations, recording."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton import knobs

import mmlk
from mmlk.ops import owned
from mmlk.ops.triton import compat

try:
    import fcntl
except ImportError:  # not POSIX: ranks compile independently
    fcntl = None

LEAST_CAPABILITY = (8, 0)
INTERPRETED = knobs.runtime.interpret


def unavailable(index: int | None) -> str | None:
    """Reason why kernels cannot run on CUDA device ``index``, or None."""
    if not torch.cuda.is_available():
        return 'torch sees no CUDA device'
    capability = torch.cuda.get_device_capability(index)
    if capability < LEAST_CAPABILITY:
        return (
            f'the device has compute capability {capability[0]}.{capability[1]}, kernels need '
            f'{LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}'
        )
    return None


# --------------------------------------------------------------------------------- compilation


@contextlib.contextmanager
def _compile_lock(name: str) -> Iterator[None]:
    """Holds a lock that the processes of one user on one machine share while ``name`` compiles.

    A name is a kernel with its types and constants.

    Of many ranks that need a kernel at once one compiles, the others find the result in Triton's
    cache. Ranks of several machines share nothing unless TRITON_CACHE_DIR is a shared folder.
    """
    if fcntl is None:
        yield
        return
    path = _lock_path(name)
    # Links are not followed, and files of other users not waited for.
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield  # processes compile independently
        return
    with os.fdopen(handle, 'a') as file:
        if owned.can_trust(path, handle):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file releases the lock, also when the process is killed


def _lock_path(name: str) -> Path:
    key = hashlib.sha256(f'{knobs.cache.dir}/{name}'.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f'mmlk-triton-{os.getuid()}-{key}.lock'


_Kernel = compat.function_with_lock(_compile_lock)


def jit(function: Callable | None = None, **options):
    """`triton.jit` with a compile lock; ``options`` as there."""
    if function is None:
        return lambda each: jit(each, **options)
    return triton.jit(function, **options) if INTERPRETED else _Kernel(function, **options)


# --------------------------------------------------------------------------------- launching


LARGEST_GRID = (2**31 - 1, 65_535, 65_535)
"""Programs per axis that CUDA launches; all axes together have at most as many as the first one."""


class Launch(NamedTuple):
    """A launch that was recorded instead of run."""

    kernel: object
    grid: tuple[int, ...]
    args: tuple
    options: dict


_RECORD: list[Launch] | None = None


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collects launches instead of running them; launchers then work on meta tensors."""
    global _RECORD
    before, _RECORD = _RECORD, []
    try:
        yield _RECORD
    finally:
        _RECORD = before


def launch(kernel, grid: Sequence[int], *args, **options) -> None:
    """Run ``kernel`` on the device of its first argument and that device's current stream.

    Args:
        kernel: Made by `jit`.
        grid: Programs per axis; none at all if one of them is 0.
        args: Its run-time arguments, the first one a tensor or a tuple of them.
        options: Its constants, and num_warps, num_stages.

    Raises:
        RuntimeError: If there are more programs than CUDA launches.
    """
    grid = tuple(grid)
    if math.prod(grid) > LARGEST_GRID[0] or max(grid[1:], default=0) > LARGEST_GRID[1]:
        raise RuntimeError(
            f'{kernel.__name__}: the launch needs {grid} programs, CUDA has {LARGEST_GRID} at most; '
            "take a smaller map or backend='reference'"
        )
    if _RECORD is not None:
        _RECORD.append(Launch(kernel, grid, args, options))
        return
    if 0 in grid:
        return
    device = (args[0][0] if isinstance(args[0], tuple) else args[0]).device
    if device.type != 'cuda' or device.index == torch.cuda.current_device():
        kernel[grid](*args, **options)
        return
    with torch.cuda.device(device):
        kernel[grid](*args, **options)


def cdiv(a: int, b: int) -> int:
    """Least number of blocks of ``b`` that cover ``a``."""
    return -(-a // b)


def power_of_2(value: int) -> int:
    """Least power of two that is not below ``value``."""
    return 1 << max(0, value - 1).bit_length()


def splits(work: int, programs: int, least: int, most: int = 1024) -> int:
    """Number of parts of a reduction: a function of shapes, equal on every device.

    Args:
        work: Units that are summed, e.g. rows of all images.
        programs: Programs there are without splitting.
        least: Units that one part should have at least.
        most: Limit of the result, a bound on the memory of partial sums.
    """
    wanted = cdiv(1024, max(programs, 1))  # about eight programs per processor of a large GPU
    return max(1, min(wanted, work // max(least, 1), most))


# --------------------------------------------------------------------------------- configuration

_TUNED: dict[str, dict] = {}


def autotunes() -> bool:
    """Whether MMLK_AUTOTUNE=1 asks for measured launch configurations."""
    return os.environ.get('MMLK_AUTOTUNE') == '1' and not INTERPRETED and _RECORD is None


def buckets(*sizes: int) -> tuple[int, ...]:
    """Sizes rounded up to powers of two, for the keys of `configured`."""
    return tuple(power_of_2(each) for each in sizes)


def configured(
    key: tuple, default: dict, candidates: Sequence[dict], run: Callable[..., None]
) -> None:
    """``run`` with a launch configuration: ``default``, or with MMLK_AUTOTUNE=1 the fastest.

    Measurements are made once per ``key`` and device type and kept in Triton's cache folder. Keys
    hold buckets of sizes, not sizes. Candidates must give the same result to the bit.
    """
    if not autotunes() or torch.cuda.is_current_stream_capturing():
        run(**default)
        return
    name = repr((torch.cuda.get_device_name(), *key))
    if not _TUNED:
        _TUNED.update(_stored())
    if name not in _TUNED:
        choices = (default, *candidates)
        times = [_milliseconds(lambda each=each: run(**each)) for each in choices]
        _TUNED[name] = choices[times.index(min(times))]
        _store({**_stored(), **_TUNED})
    run(**_TUNED[name])


def _tuning_file() -> Path:
    return Path(knobs.cache.dir) / f'mmlk-{mmlk.__version__}-triton-{triton.__version__}.json'


def _stored() -> dict[str, dict]:
    if not owned.can_trust(_tuning_file()):
        return {}
    try:
        return json.loads(_tuning_file().read_text())
    except (OSError, ValueError):  # nothing measured yet
        return {}


def _store(tuned: dict[str, dict]) -> None:
    path = _tuning_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f'.{os.getpid()}')
    temporary.write_text(json.dumps(tuned, indent=1))
    temporary.replace(path)  # readers see the old file or the new one


def _milliseconds(function: Callable[[], object], repeats: int = 10) -> float:
    try:
        function()
    except triton.runtime.errors.OutOfResources:
        return float('inf')
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        function()
        event.record()
    events[-1].synchronize()
    return sorted(a.elapsed_time(b) for a, b in zip(events, events[1:]))[repeats // 2]


# --------------------------------------------------------------------------------- examples


class Example(NamedTuple):
    """One launch that stands for a kernel's specialisation, and what its machine code must fulfil.

    Args:
        name: Unique within the module, e.g. ``forward-last-k7-bf16``.
        call: Calls a launcher on `meta` tensors.
        kernel: Name of the kernel meant, of those that ``call`` launches.
        position: Which of its launches, counted as list indices are.
        registers: Most registers per thread on sm_80 and sm_90.
        ffma: Least share of FFMA among the instructions of the hottest loop on both, for kernels
            bound by arithmetic on CUDA cores.
        tensor_cores: Whether tensor-core instructions must be there (HMMA on sm_80, HGMMA or HMMA
            on sm_90).
        archs: Architectures to compile for.
        slow: Compiles for more than a few seconds.
    """

    name: str
    call: Callable[[], object]
    kernel: str
    position: int = 0
    registers: tuple[int, int] = (255, 255)
    ffma: float | None = None
    tensor_cores: bool = False
    archs: tuple[int, ...] = (80, 90)
    slow: bool = False


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16, last: bool = False) -> Tensor:
    """A tensor without memory, for the launches of examples."""
    form = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device='meta', memory_format=form)
