"""Loops over float32 maps, compiled for the processor that runs them when they are first needed.

oneDNN reaches a fifth to a half of a processor's arithmetic on depthwise convolutions, and each of
its calls costs tens of microseconds. The kernels here keep their sums in registers, take a channel
block of a map through a whole operator at a time, and cost a few microseconds a call. LLVM compiles them
in a tenth of a second, by way of the package llvmlite; no compiler needs to be installed. Without
llvmlite the operators use the routes of torch alone.

- `engine`: from a written kernel to machine code, and its launch on torch's threads.
- `inspection`: LLVM code, assembly and names for ``perf``, when the environment asks for them.
- `recording`, `plan`, `arena`: what a run did, to be repeated without Python.
- `address`: from tensors to addresses; `checks`, `checked`: loops that check what they touch.
- `language`: the words kernels are written in: loops, vectors of 16 floats, strided maps.
- `maths`, `planes`, `moments`, `tile`: what the loops of several operators share.

The loops themselves are beside their operators, in files named ``loops``.
"""

from mmlk.ops.jit.engine import refusal

__all__ = ['refusal']
