"""What CUDA kernels in Triton share; they are compiled at their first use, nothing at installation.

The kernels are beside their operators, in files named ``triton``. The ``cuda.py`` there imports them,
and that only once a CUDA tensor is seen: torch without Triton or without a GPU is not affected.

How a kernel module looks (`mmlk.ops.depthwise.triton` and `mmlk.ops.inception.triton` are the pattern):

* Its docstring states the tiling in words, the arithmetic intensity, what is accumulated in which
  dtype, and why results do not depend on anything but shapes.
* Kernels are decorated with `runtime.jit`. Map sizes are run-time arguments that are not
  specialised (``@runtime.jit(do_not_specialize=('height', 'width'))``), so a new image size never
  compiles anything. Offsets inside one image are int32, the offset of an image int64.
* Launchers are plain functions on tensors, with the signature of the registered operator:
  ``forward(x, weight, bias, stride)``, ``backward(grad, x, weight, stride, mask)``. They allocate
  with `torch.empty`, write every element, and start kernels with `runtime.launch` only, which
  serves any device and stream, empty batches, the interpreter (CPU tensors) and recording. They
  neither synchronise nor read values back, so CUDA graphs can capture them.
* Reductions over batch and pixels go through fp32 partial sums of a number that is a function of
  shapes (`runtime.splits`), added by a second kernel in fixed order. No atomics.
* ``EXAMPLES``: a tuple of `runtime.Example`, the launches that represent the module's kernels,
  with what the compiled code must fulfil on sm_80 and sm_90. `tests/ops/triton/test_machine_code.py`
  and ``tools/bench/inspect_kernels.py`` run over the examples of all `MODULES`.

How an operator gets a module: its ``cuda.py`` calls `mmlk.ops.cuda.implement` for each registered
operator (forward and backward) and registers one 'triton' backend. Further ways to compute one pass of
a depthwise convolution are a `Route` in `mmlk.ops.depthwise.triton.ROUTES`.

How it is tested: ``tests/ops`` runs launchers in Triton's interpreter in a process of its own
(`interpreted`), with `torch.empty` poisoned by NaN; see ``tests/ops/triton/conftest.py``.
"""

MODULES = (
    'depthwise.triton',
    'inception.triton',
    'recconv.triton',
    'dcls.triton',
    'triton.planes',
    'depthwise.triton_toeplitz',
    'large_kernel.triton',
)
