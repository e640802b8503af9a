"""Names of Triton that it does not promise to keep, each under a name of ours; checked on 3.6.0."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import triton

CHECKED = '3.6.0'
"""Version of Triton on which the functions below were checked."""


def function_with_lock(lock: Callable[[str], contextlib.AbstractContextManager]) -> type:
    """A ``triton.JITFunction`` that holds ``lock(name)`` while a specialisation compiles.

    Needs ``JITFunction._do_compile``. Without it the processes of a machine compile independently.
    """
    if not hasattr(triton.JITFunction, '_do_compile'):
        return triton.JITFunction

    class Kernel(triton.JITFunction):
        """A Triton function whose compilation is serialised between processes."""

        def _do_compile(self, key: str, *args: Any, **kwargs: Any) -> Any:
            with lock(f'{self.__name__} {key}'):
                return super()._do_compile(key, *args, **kwargs)

    return Kernel


def compile_for(kernel: Any, arch: int, args: tuple, options: dict) -> Any:
    """What Triton compiles for a launch on a device of ``sm_<arch>``, which need not be there.

    Needs ``create_function_from_signature`` and ``JITFunction._pack_args``.

    Args:
        kernel: A Triton function.
        arch: Ten times the compute capability.
        args: Run-time arguments of the launch.
        options: Its constants, and num_warps, num_stages.

    Raises:
        RuntimeError: If Triton no longer specialises in this way.
    """
    try:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, make_backend
        from triton.runtime.jit import create_function_from_signature

        target = GPUTarget('cuda', arch, 32)
        backend = make_backend(target)
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialisation, given = bind(*args, **options)
        given, signature, constants, attributes = kernel._pack_args(
            backend, dict(options), bound, specialisation, given
        )
        source = ASTSource(kernel, signature, constants, attributes)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise RuntimeError(
            f'Triton {triton.__version__} does not specialise a launch as {CHECKED} does ({error}); '
            f'install triton=={CHECKED} to inspect machine code'
        ) from error
    return triton.compile(source, target=target, options=given.__dict__)
