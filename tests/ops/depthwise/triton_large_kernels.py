"""What the interpreter's process does for the tests of the tensor-core kernels."""

import torch

from mmlk.ops import reference
from tests.cases import TOLERANCE, assert_close
from tests.ops.helpers import LAYOUTS, double


def _expected(function, tensors, cotangents):
    """Outputs of ``function`` and gradients of ``tensors``, in float64."""
    tensors = [double(each) for each in tensors]
    outputs = function(*tensors)
    grads = torch.autograd.grad(outputs, tensors, [each.double() for each in cotangents])
    return list(outputs), list(grads)


def check_depthwise(shape, kernel, layout, dtype):
    """All passes of one convolution; kernels stay fp32, as under autocast."""
    from mmlk.ops.depthwise import triton_toeplitz as toeplitz

    torch.manual_seed(0)
    x, cotangent = LAYOUTS[layout](shape, dtype), LAYOUTS[layout](shape, dtype)
    weight, bias = torch.randn(shape[1], 1, *kernel), torch.randn(shape[1])
    weight = weight.to(dtype).float()  # the rounding of the kernel is not the kernel's error
    (want,), grads = _expected(
        lambda *args: (reference.depthwise_conv2d_reference(*args),), (x, weight, bias), [cotangent]
    )
    outputs, parameters = TOLERANCE[dtype]
    y = toeplitz.forward(x, weight, bias, (1, 1))
    assert y.dtype == dtype
    assert_close('y', y, want, outputs)
    grad_x, grad_weight, grad_bias = toeplitz.backward(cotangent, x, weight, (1, 1), [True] * 3)
    assert_close('grad_x', grad_x, grads[0], outputs)
    for result in (y, grad_x):
        assert result.is_contiguous(
            memory_format=(
                torch.channels_last
                if layout.startswith('channels_last')
                else torch.contiguous_format
            )
        )
    assert grad_weight.dtype == grad_bias.dtype == torch.float32
    assert_close('grad_weight', grad_weight, grads[1], parameters)
    assert_close('grad_bias', grad_bias, grads[2], parameters)


def check_parts_of_the_weight_gradient(parts):
    """Splitting the sum over blocks changes the grouping of terms only."""
    from mmlk.ops.depthwise import triton_toeplitz as toeplitz

    torch.manual_seed(0)
    x, grad = torch.randn(9, 1, 10, 16), torch.randn(9, 1, 10, 16)
    toeplitz.splits = lambda *_args, **_kwargs: parts
    _, got, _ = toeplitz.backward(grad, x, torch.empty(1, 1, 9, 11), (1, 1), [False, True, False])
    weight = torch.zeros(1, 1, 9, 11, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(
        reference.depthwise_conv2d_reference(x.double(), weight), weight, grad.double()
    )
    assert_close('grad_weight', got, want, TOLERANCE[torch.float32][1])


def check_large_kernel(shape, kernels, layout, dtype):
    """Branches, their sum with a bias, and the gradients of both."""
    from mmlk.ops.large_kernel import triton as large_kernel

    torch.manual_seed(0)
    x = LAYOUTS[layout](shape, dtype)
    cotangents = [LAYOUTS[layout](shape, dtype) for _ in kernels]
    weights = [torch.randn(shape[1], 1, *kernel).to(dtype).float() for kernel in kernels]
    bias, padded = torch.randn(shape[1]), [*weights, None][:3]
    outputs, parameters = TOLERANCE[dtype]

    wants, grads = _expected(
        lambda x, *weights: reference.large_kernel_branches_reference(x, weights),
        (x, *weights),
        cotangents,
    )
    for got, want in zip(large_kernel.branches(x, *padded), wants):
        assert_close('branch', got, want, outputs)
    mask = [True] * (1 + len(weights)) + [False] * (4 - len(weights))
    got = large_kernel.backward(*(cotangents * 2)[:3], x, *padded, mask)
    assert_close('grad_x', got[0], grads[0], outputs)
    for mine, theirs in zip(got[1:], grads[1:]):
        assert_close('grad_weight', mine, theirs, parameters)

    cotangent = cotangents[0]
    (want,), grads = _expected(
        lambda x, bias, *weights: (reference.large_kernel_sum_reference(x, weights, bias),),
        (x, bias, *weights),
        [cotangent],
    )
    assert_close('sum', large_kernel.total(x, *padded, bias), want, outputs)
    got = large_kernel.backward(
        cotangent, cotangent, cotangent, x, *padded, [True, False, True, False, True]
    )
    assert_close('grad_x of the sum', got[0], grads[0], outputs)
    assert got[1].numel() == got[3].numel() == 0
    assert_close('grad_second', got[2], grads[3], parameters)
    assert_close('grad_bias', got[4], grads[1], parameters)
