"""What the operator tests share: awkward inputs, and gradients of an operator call."""

import torch


def plain(shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype)


def channels_last(shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def channel_slice(shape, dtype=torch.float32):
    n, c, h, w = shape
    return torch.randn((n, c + 5, h, w), dtype=dtype)[:, 2 : 2 + c]


def channels_last_slice(shape, dtype=torch.float32):
    n, c, h, w = shape
    return channels_last((n, c + 5, h, w), dtype)[:, 2 : 2 + c]


def expanded(shape, dtype=torch.float32):
    n, c, h, w = shape
    return torch.randn((n, 1, h, 1), dtype=dtype).expand(shape)


def transposed(shape, dtype=torch.float32):
    n, c, h, w = shape
    return torch.randn((n, c, w, h), dtype=dtype).transpose(2, 3)


LAYOUTS = {
    'contiguous': plain,
    'channels_last': channels_last,
    'channel_slice': channel_slice,
    'channels_last_slice': channels_last_slice,
    'expanded': expanded,
    'transposed': transposed,
}


def leaf(tensor):
    """The same values and strides, as a leaf that wants a gradient."""
    return tensor.detach().requires_grad_()


def double(tensor):
    return tensor.detach().double().requires_grad_()


def outputs_and_gradients(function, tensors, cotangent):
    """Output of ``function(*tensors)`` and its gradients for ``cotangent``, as one list."""
    out = function(*tensors)
    return [out, *torch.autograd.grad(out, tensors, cotangent.to(out.dtype))]
