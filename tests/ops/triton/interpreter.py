"""What runs in the interpreter's process: poisoned memory, and comparisons with float64."""

import torch
from triton.runtime import interpreter

from mmlk.ops import reference
from tests.cases import TOLERANCE, assert_close
from tests.ops.helpers import LAYOUTS, double


def prepare() -> None:
    """Fills what `torch.empty*` returns with NaN, in one thread; fp32 maps are strict fp32."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    _read_scalars()
    for owner, name in (
        (torch, 'empty'),
        (torch, 'empty_like'),
        (torch, 'empty_strided'),
        (torch.Tensor, 'new_empty'),
    ):
        setattr(owner, name, _poisoned(getattr(owner, name)))


def _read_scalars() -> None:
    """Numbers of kernels are arrays of one element, of which Triton 3.6 takes ``int(array)``.

    NumPy has none for arrays with axes from 2.4 on; the value is the array's only item.
    """
    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, '__index__', lambda self: int(self.handle.data.item()))
        scope.set_attr(tensor, '__bool__', lambda self: _truth(self.handle.data))

    interpreter._patch_lang_tensor = patched


def _truth(data) -> bool:
    return bool(data.item()) if data.size == 1 else True


def _poisoned(allocate):
    def call(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        return tensor.fill_(float('nan')) if tensor.is_floating_point() else tensor

    return call


def compare(function, tensors, got, cotangent, dtype, names):
    """``got``, output and gradients, against ``function`` and autograd in float64.

    The first of ``tensors`` is the map, the others are parameters.
    """
    leaves = [double(each) for each in tensors]
    y = function(*leaves)
    want = [y, *torch.autograd.grad(y, leaves, cotangent.double())]
    assert len(got) == len(want)
    for index, (name, mine, theirs) in enumerate(zip(names, got, want)):
        assert_close(name, mine, theirs, TOLERANCE[dtype][index > 1])


def check_depthwise(shape, kernel, stride, layout, dtype, weight_dtype=torch.float32):
    """The launchers of forward and backward pass; ``layout`` is that of map and gradient."""
    from mmlk.ops.depthwise import triton as depthwise

    torch.manual_seed(0)
    stride = reference.pair(stride)
    x = LAYOUTS[layout](shape, dtype)
    weight, bias = torch.randn(shape[1], 1, *kernel).to(weight_dtype), torch.randn(shape[1])
    y = depthwise.forward(x, weight, bias, stride)
    cotangent = LAYOUTS[layout](tuple(y.shape), dtype)
    got = [y, *depthwise.backward(cotangent, x, weight, stride, [True, True, True])]
    assert [each.dtype for each in got] == [dtype, dtype, weight_dtype, weight_dtype]
    compare(
        lambda *args: reference.depthwise_conv2d_reference(*args, stride),
        (x, weight, bias),
        got,
        cotangent,
        dtype,
        ('y', 'grad_x', 'grad_weight', 'grad_bias'),
    )


def check_depthwise_rearranged(*arguments):
    """As `check_depthwise`, with weights rearranged as they are for large maps."""
    from mmlk.ops.depthwise import triton_direct as direct

    before, direct.REARRANGED = direct.REARRANGED, 0
    try:
        check_depthwise(*arguments)
    finally:
        direct.REARRANGED = before


def check_depthwise_on_demand(mask):
    """Gradients asked for one at a time equal those asked for together."""
    from mmlk.ops.depthwise import triton as depthwise

    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 6, 5), torch.randn(3, 1, 3, 3)
    grad = torch.randn_like(x)
    every = depthwise.backward(grad, x, weight, (1, 1), [True, True, True])
    some = depthwise.backward(grad, x, weight, (1, 1), mask)
    for wanted, mine, theirs in zip(mask, some, every):
        assert torch.equal(mine, theirs) if wanted else mine.numel() == 0


def check_depthwise_without_images():
    """An empty batch has an empty result and gradients of zero."""
    from mmlk.ops.depthwise import triton as depthwise

    x, weight = torch.randn(0, 3, 6, 5), torch.randn(3, 1, 3, 3)
    y = depthwise.forward(x, weight, None, (2, 2))
    grad_x, grad_weight, grad_bias = depthwise.backward(y, x, weight, (2, 2), [True] * 3)
    assert y.shape == (0, 3, 3, 3) and grad_x.shape == x.shape
    assert not grad_weight.any() and not grad_bias.any()


def check_inception(shape, branch, side, band, layout, dtype):
    """The launchers of forward and backward pass."""
    from mmlk.ops.inception import triton as inception

    torch.manual_seed(0)
    x, cotangent = LAYOUTS[layout](shape, dtype), LAYOUTS[layout](shape, dtype)
    parameters = [
        torch.randn(size)
        for size in (
            (branch, 1, side, side),
            (branch,),
            (branch, 1, 1, band),
            (branch,),
            (branch, 1, band, 1),
            (branch,),
        )
    ]
    got = [
        inception.forward(x, *parameters),
        *inception.backward(cotangent, x, *parameters[::2], [True] * 7),
    ]
    assert [each.dtype for each in got[:2]] == [dtype] * 2
    compare(
        reference.inception_dwconv2d_reference,
        (x, *parameters),
        got,
        cotangent,
        dtype,
        ('y', 'grad_x', 'square', 'square bias', 'wide', 'wide bias', 'tall', 'tall bias'),
    )


def check_inception_on_demand(mask):
    """Gradients asked for alone equal those asked for together; without biases it runs as well."""
    from mmlk.ops.inception import triton as inception

    torch.manual_seed(0)
    x = torch.randn(1, 7, 5, 4)
    weights = [torch.randn(2, 1, *size) for size in ((3, 3), (1, 5), (5, 1))]
    y = inception.forward(x, weights[0], None, weights[1], None, weights[2], None)
    assert_close(
        'y',
        y,
        reference.inception_dwconv2d_reference(
            x, weights[0], None, weights[1], None, weights[2], None
        ),
        TOLERANCE[torch.float32][0],
    )
    grad = torch.randn_like(x)
    every = inception.backward(grad, x, *weights, [True] * 7)
    some = inception.backward(grad, x, *weights, mask)
    for wanted, mine, theirs in zip(mask, some, every):
        assert torch.equal(mine, theirs) if wanted else mine.numel() == 0


def check_recconv(shape, levels, kernel, mode, layout, dtype, **settings):
    """The launchers of forward and backward pass; ``settings`` replace constants of the module."""
    from mmlk.ops.recconv import triton as recconv

    torch.manual_seed(0)
    before = {name: getattr(recconv, name) for name in settings}
    for name, value in settings.items():
        setattr(recconv, name, value)
    try:
        x, cotangent = LAYOUTS[layout](shape, dtype), LAYOUTS[layout](shape, dtype)
        down, *weights = torch.randn(levels + 2, shape[1], 1, kernel, kernel) / kernel
        y, saved = recconv.forward(x, down, weights, mode)
        grad_x, grad_down, grad_weights = recconv.backward(
            cotangent, x, down, weights, saved, mode, [True] * 3
        )
    finally:
        for name, value in before.items():
            setattr(recconv, name, value)
    got = [y, grad_x, grad_down, *grad_weights]
    assert [each.dtype for each in got[:3]] == [dtype, dtype, torch.float32]
    compare(
        lambda x, down, *weights: reference.recconv2d_reference(x, down, weights, mode=mode),
        (x, down, *weights),
        got,
        cotangent,
        dtype,
        ('y', 'grad_x', 'down', *['kernel'] * 9),
    )


def check_recconv_not_finite(mode):
    """Infinite values of the coarse maps reach what they reach in the reference, and as the same."""
    from mmlk.ops.recconv import triton as recconv

    torch.manual_seed(0)
    x, (down, *weights) = torch.randn(1, 2, 8, 12), torch.rand(3, 2, 1, 3, 3) + 0.1
    x[0, 0, 3, 3:5], x[0, 1, 2, 2], x[0, 1, 6, 9] = float('inf'), float('inf'), -float('inf')
    y, _ = recconv.forward(x, down, weights, mode)
    want = reference.recconv2d_reference(
        x.double(), down.double(), [each.double() for each in weights], mode=mode
    )
    assert want.isinf().any() and want.isfinite().any()
    assert torch.equal(y.isnan(), want.isnan()) and torch.equal(y.isinf(), want.isinf())
    rest = want.isfinite()
    assert_close('y', y[rest], want[rest], TOLERANCE[torch.float32][0])


def check_dcls(version, channels, count, window, dtype):
    """The launchers of forward and backward pass, with positions at integers and borders."""
    from mmlk.ops.dcls import triton as dcls

    torch.manual_seed(0)
    weight, positions = torch.randn(*channels, count), torch.randn(2, *channels, count) * 2
    positions[..., 0] = torch.tensor([1.0, -2.0]).view(2, 1, 1)
    positions[..., 1] = torch.tensor([side // 2 for side in window]).view(2, 1, 1)
    positions[..., 2] = 40.0
    sigma = torch.randn(2, *channels, count) if version in ('max', 'gauss') else None
    arguments = [each.to(dtype) for each in (weight, positions, sigma) if each is not None]
    sigma = arguments[2] if sigma is not None else None
    cotangent = torch.randn(*channels, *window)
    kernel = dcls.forward(*arguments[:2], sigma, window, version)
    grads = dcls.backward(cotangent, *arguments[:2], sigma, window, version)
    assert kernel.dtype == torch.float32 and grads[1].dtype == dtype

    def build(*leaves):
        return reference.dcls_kernel2d_reference(*leaves, kernel_size=window, version=version)

    leaves = [double(each) for each in arguments]
    want = build(*leaves)
    assert_close('kernel', kernel, want, TOLERANCE[torch.float32][0])
    for name, mine, theirs in zip(
        ('weight', 'positions', 'sigma'),
        grads,
        torch.autograd.grad(want, leaves, cotangent.double()),
    ):
        assert_close(name, mine, theirs, TOLERANCE[dtype][1])


def check_dcls_not_finite(version):
    """A position that is not finite shows in its kernel and in no other."""
    from mmlk.ops.dcls import triton as dcls

    positions = torch.zeros(2, 2, 1, 3)
    positions[0, 1, 0, 2] = float('nan')
    sigma = torch.ones_like(positions) if version in ('max', 'gauss') else None
    kernel = dcls.forward(torch.ones(2, 1, 3), positions, sigma, (5, 5), version)
    assert kernel[0].isfinite().all() and kernel[1].isnan().any()
