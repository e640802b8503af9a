"""A CUDA device that is not there, for processes of their own: everything up to the launch is real.

`install` builds a driver library that keeps launches instead of running them (``libcuda.c``) and has
Triton find it. Dispatch, autocast, specialisation, compilation by ptxas and Triton's launchers in C are
those of a device; tensors on ``cuda`` have shapes, strides and an address, and no values: reading one
gives 0, comparing two gives that they are equal. torch's engine wants a device, so graphs of autograd
are walked here.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

SHARED_LIMIT = {80: 166_912, 90: 232_448}
"""Bytes of shared memory that one program may have, by architecture."""

_ADDRESS = 1 << 40  # of every allocation
_NAME = 'libcuda.so.1'
_library: ctypes.CDLL | None = None


class Launch(NamedTuple):
    """What reached the driver.

    Args:
        kernel: Its name.
        grid: Programs per axis.
        threads: Of one program.
        shared: Bytes of shared memory of one program.
        function: For `image`.
    """

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    function: int


def refusal() -> str | None:
    """Reason why the fake device cannot be built here, or None."""
    if find_spec('triton') is None:
        return 'Triton is not installed'
    if _compiler() is None:
        return 'there is no C compiler'
    for path in (_triton() / 'bin' / 'ptxas', _triton() / 'include' / 'cuda.h'):
        if not path.exists():
            return f'Triton comes without {path.name}'
    if not Path(sysconfig.get_path('include'), 'Python.h').exists():
        return "the headers of Python are missing, which Triton's launchers need"
    return None


def _compiler() -> str | None:
    return os.environ.get('CC') or shutil.which('gcc') or shutil.which('clang')


def _triton() -> Path:
    return Path(find_spec('triton').origin).parent / 'backends' / 'nvidia'


def build(folder: Path) -> None:
    """Compile the driver library into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name('libcuda.c')
    target = folder / f'{_NAME}.{os.getpid()}'
    command = [_compiler(), '-shared', '-fPIC', '-O1', f'-Wl,-soname,{_NAME}']
    subprocess.run(
        [*command, '-I', _triton() / 'include', '-o', target, source], check=True, timeout=120
    )
    target.replace(folder / _NAME)  # several processes may build it


# --------------------------------------------------------------------------------- the driver


class _Function(ctypes.Structure):
    _fields_ = [
        ('image', ctypes.c_void_p),
        ('size', ctypes.c_size_t),
        ('name', ctypes.c_char * 256),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ('function', ctypes.c_int32),
        ('grid', ctypes.c_uint32 * 3),
        ('threads', ctypes.c_uint32),
        ('shared', ctypes.c_uint32),
    ]


def load(arch: int, folder: Path) -> None:
    """Have Triton take the library in ``folder`` for the driver of a device of ``sm_<arch>``."""
    global _library
    build(folder)
    os.environ['TRITON_LIBCUDA_PATH'] = str(folder)
    _library = ctypes.CDLL(str(folder / _NAME), mode=ctypes.RTLD_GLOBAL)
    _library.fake_launch_count.restype = ctypes.c_size_t
    _library.fake_launches.restype = ctypes.POINTER(_Launch)
    _library.fake_function.restype = ctypes.POINTER(_Function)
    _library.fake_shared_limit(SHARED_LIMIT[arch])
    _patch_torch(arch)


def launches() -> list[Launch]:
    """Launches since the last call."""
    pointer, count = _library.fake_launches(), _library.fake_launch_count()
    found = [
        Launch(
            _library.fake_function(each.function).contents.name.decode(),
            tuple(each.grid),
            each.threads,
            each.shared,
            each.function,
        )
        for each in (pointer[index] for index in range(count))
    ]
    _library.fake_forget_launches()
    return found


def image(function: int) -> bytes:
    """Machine code of the kernel of a `Launch`, as the driver got it."""
    found = _library.fake_function(function).contents
    return ctypes.string_at(found.image, found.size)


# --------------------------------------------------------------------------------- torch


class _Properties(NamedTuple):
    name: str
    major: int
    minor: int
    total_memory: int = 80 * 2**30
    multi_processor_count: int = 132
    L2_cache_size: int = 50 * 2**20


class _Queue:
    """A stream, event or graph: there is nothing to wait for."""

    cuda_stream = 0

    def __init__(self, *args: Any, **options: Any):
        pass

    def __enter__(self) -> _Queue:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def elapsed_time(self, _other: _Queue) -> float:
        return 1.0

    def nothing(self, *args: Any) -> None:
        pass

    record = wait_stream = wait_event = synchronize = replay = nothing


def _patch_torch(arch: int) -> None:
    torch._C._ensureCUDADeviceGuardSet()
    properties, stream = _Properties('fake device', arch // 10, arch % 10), _Queue()
    for name, value in dict(
        is_available=True,
        is_initialized=True,
        current_device=0,
        device_count=1,
        get_device_capability=(arch // 10, arch % 10),
        get_device_name=properties.name,
        get_device_properties=properties,
        current_stream=stream,
        is_current_stream_capturing=False,
        is_bf16_supported=True,
        memory_allocated=0,
        max_memory_allocated=0,
        stream=stream,
        graph=stream,
        **dict.fromkeys(
            (
                '_lazy_init',
                '_sleep',
                'set_device',
                'synchronize',
                'empty_cache',
                'reset_peak_memory_stats',
            )
        ),
    ).items():
        setattr(torch.cuda, name, _constant(value))
    torch.cuda.Event = torch.cuda.Stream = torch.cuda.CUDAGraph = _Queue
    torch._C._cuda_getCurrentRawStream = _constant(0)


def _constant(value: Any) -> Callable:
    return lambda *args, **options: value


class Placed(Tensor):
    """A tensor on the fake device; ``inner`` has its shape on torch's meta device."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Placed:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device='cuda:0',
        )
        made.inner = inner
        return made

    def data_ptr(self) -> int:
        if self.numel() == 0:
            return 0
        return _ADDRESS + self.storage_offset() * self.element_size()

    def __repr__(self, **_: Any) -> str:
        return f'Placed({tuple(self.shape)}, {self.dtype})'

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class Device(TorchDispatchMode):
    """While it is entered, new tensors on ``cuda`` are `Placed` ones."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
_aten = torch.ops.aten


def _run(function: Any, args: tuple, kwargs: dict) -> Any:
    if function.namespace == 'mmlk':
        with Device():
            return function.redispatch(_CUDA, *args, **kwargs)
    placed = any(isinstance(each, Placed) for each in tree_leaves((args, kwargs)))
    target = kwargs.get('device')
    if target is not None:
        on_device = torch.device(target).type == 'cuda'
        kwargs = {**kwargs, 'device': torch.device('meta')} if on_device else kwargs
    else:
        on_device = placed
    if placed and function is _aten._local_scalar_dense.default:
        return True if args[0].dtype == torch.bool else torch.zeros((), dtype=args[0].dtype).item()
    if placed and function is _aten.equal.default:
        return True
    if placed and not on_device:  # to the CPU
        return torch.zeros(args[0].shape, dtype=kwargs.get('dtype', args[0].dtype))
    if function is _aten.copy_.default and not isinstance(args[0], Placed):
        return args[0].zero_() if placed else function(*args, **kwargs)
    if not on_device:
        return function(*args, **kwargs)
    owners: dict[int, Placed] = {}

    def unwrap(value: Any) -> Any:
        if isinstance(value, Placed):
            owners[id(value.inner)] = value
            return value.inner
        return value.to('meta') if isinstance(value, Tensor) else value

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return owners.get(id(value)) if id(value) in owners else Placed(value)

    return tree_map(wrap, function(*tree_map(unwrap, args), **tree_map(unwrap, kwargs)))


# --------------------------------------------------------------------------------- autograd


def _walk(roots: Sequence[Tensor], cotangents: Sequence[Tensor]) -> dict[int, Tensor]:
    """Gradients of the leaves that ``roots`` depend on, by id."""
    nodes, waits = {}, Counter()  # by id; the values keep them alive
    stack = [each.grad_fn for each in roots]
    while stack:
        node = stack.pop()
        if id(node) in nodes:
            continue
        nodes[id(node)] = node
        following = [each for each, _ in node.next_functions if each is not None]
        waits.update(map(id, following))
        stack += following
    incoming = defaultdict(dict)
    for root, cotangent in zip(roots, cotangents):
        incoming[id(root.grad_fn)][root.output_nr] = cotangent
    ready, found = [each for each in nodes.values() if not waits[id(each)]], {}
    while ready:
        node = ready.pop()
        given = incoming.pop(id(node), {})
        if hasattr(node, 'variable'):
            found[id(node.variable)] = given.get(0)
            continue
        grads = _call(node, given) if given else ()
        for index, (following, position) in enumerate(node.next_functions):
            if following is None:
                continue
            grad = grads[index] if index < len(grads) else None
            if grad is not None:
                shape = following._input_metadata[position].shape
                grad = grad if grad.shape == tuple(shape) else grad.sum_to_size(shape)
                sums = incoming[id(following)]
                sums[position] = sums[position] + grad if position in sums else grad
            waits[id(following)] -= 1
            if not waits[id(following)]:
                ready.append(following)
    return found


def _call(node: Any, given: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """Gradients that ``node`` gives for those of its outputs, zeros where there is none."""
    grads = [
        given[index]
        if index in given
        else torch.zeros(tuple(each.shape), dtype=each.dtype, device=each.device)
        for index, each in enumerate(node._input_metadata)
    ]
    found = node.apply(*grads) if hasattr(node, 'apply') else node(*grads)
    return found if isinstance(found, tuple) else (found,)


def _grad(outputs, inputs, grad_outputs=None, **_: Any) -> tuple[Tensor | None, ...]:
    outputs, inputs, given = (
        [each] if isinstance(each, Tensor) else list(each)
        for each in (outputs, inputs, () if grad_outputs is None else grad_outputs)
    )
    with torch.no_grad():
        found = _walk(outputs, given or [torch.ones_like(each) for each in outputs])
    return tuple(found.get(id(each)) for each in inputs)


def _backward(self: Tensor, gradient: Tensor | None = None, **_: Any) -> None:
    leaves = _leaves(self.grad_fn)
    for leaf, grad in zip(leaves, _grad(self, leaves, gradient)):
        leaf.grad = grad


def _leaves(node: Any) -> list[Tensor]:
    seen, stack, found = set(), [node], []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, 'variable'):
            found.append(node.variable)
        stack += [each for each, _ in node.next_functions]
    return found


def install(arch: int, folder: Path) -> None:
    """`load`, and `Device` for the rest of the process; before the first use of Triton."""
    load(arch, folder)
    torch.autograd.grad, torch.Tensor.backward = _grad, _backward
    Device().__enter__()
