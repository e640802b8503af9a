"""What the C library does with freed memory decides a tenth of a training step on a CPU."""

from __future__ import annotations

import ctypes
import functools
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3)


@functools.lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GB of freed memory for the next step, once per process.

    By default it returns freed blocks to the kernel, blocks of a few MB at once and the top of its heap
    when 64 MB are free. The next allocation of the same block is then zeroed page by page: 80 MB
    a step in the training of a network of 50 million parameters. Settings of the user
    (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``) are left alone.
    """
    chosen = any(name.startswith(('MALLOC_', 'GLIBC_TUNABLES')) for name in os.environ)
    if chosen or platform.libc_ver()[0] != 'glibc':
        return
    library = ctypes.CDLL(None)
    library.mallopt(_TRIM_THRESHOLD, 1 << 30)
    library.mallopt(_MMAP_THRESHOLD, 1 << 25)  # the largest it accepts
