"""CUDA kernels in Triton, compiled at their first use; nothing is built at installation.

Nobody imports this package but `mmlk.ops.cuda`, and that only once a CUDA tensor is seen, so torch
without Triton or without a GPU is not affected.

How a kernel module looks (``depthwise.py`` or ``inception.py`` is the pattern):

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
  and ``tools/inspect_kernels.py`` run over the examples of all `MODULES`.

How an operator gets a module: one row in `mmlk.ops.cuda.KERNELS` per registered operator (forward
and backward) and one `dispatch.register` of a 'triton' backend there. Further ways to compute one
pass of a depthwise convolution are a `depthwise.Route` in `depthwise.ROUTES`.

How it is tested: ``tests/ops/triton`` runs launchers in Triton's interpreter in a process of its own
(`interpreted`), with `torch.empty` poisoned by NaN; see ``tests/ops/triton/conftest.py``.
"""

MODULES = ('depthwise', 'inception', 'recconv', 'dcls', 'planes', 'toeplitz', 'large_kernel')
