"""Launching without a GPU: predicates, recording, the number of partial sums, the compile lock."""

import fcntl
import multiprocessing

import pytest
import torch
from torch._subclasses import FakeTensorMode

from mmlk.ops import (
    DepthwiseConv2d,
    InceptionDWConv2d,
    cuda,
    dcls_kernel2d,
    depthwise_conv2d,
    explain,
)
from mmlk.ops.depthwise import triton as depthwise
from mmlk.ops.triton import runtime


def fake_arguments(dtype):
    return (
        torch.empty(2, 4, 9, 9, dtype=dtype, device='cuda'),
        torch.empty(4, 1, 7, 7, dtype=dtype, device='cuda'),
    )


def test_reason_without_a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(
        cuda, '_refusal_of_triton', cuda._refusal_of_triton.__wrapped__
    )  # nothing remembered
    with FakeTensorMode():
        text = explain(depthwise_conv2d, *fake_arguments(torch.float32))
    assert 'triton: not used, torch sees no CUDA device' in text
    assert 'reference: used' in text


def test_reason_on_hip(monkeypatch):
    monkeypatch.setattr(torch.version, 'hip', '6.2')
    monkeypatch.setattr(cuda, '_refusal_of_triton', cuda._refusal_of_triton.__wrapped__)
    with FakeTensorMode():
        text = explain(depthwise_conv2d, *fake_arguments(torch.float32))
    assert 'triton: not used, the kernels are not supported on HIP' in text
    assert 'reference: used' in text


def test_a_lock_that_is_not_the_users_own_is_not_waited_for(monkeypatch, tmp_path):
    path = tmp_path / 'lock'
    monkeypatch.setattr(runtime, '_lock_path', lambda name: path)
    path.touch()
    path.chmod(0o666)
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with runtime._compile_lock('kernel'):  # would wait for ever
            pass
    path.unlink()
    path.symlink_to(tmp_path / 'elsewhere')
    with runtime._compile_lock('kernel'):
        assert not (tmp_path / 'elsewhere').exists()


def test_tuning_that_others_may_write_is_not_read(monkeypatch, tmp_path):
    path = tmp_path / 'tuned.json'
    monkeypatch.setattr(runtime, '_tuning_file', lambda: path)
    path.write_text('{"a": {}}')
    path.chmod(0o600)
    assert runtime._stored() == {'a': {}}
    path.chmod(0o622)
    assert runtime._stored() == {}


def test_reasons_of_type_and_size(monkeypatch):
    monkeypatch.setattr(cuda, '_refusal_of_triton', lambda index: None)
    with FakeTensorMode():
        assert 'triton: used' in explain(depthwise_conv2d, *fake_arguments(torch.bfloat16))
        assert 'triton: not used, the input is torch.float64' in explain(
            depthwise_conv2d, *fake_arguments(torch.float64)
        )
        large = torch.empty(1, 2**12, 2**10, 2**10, dtype=torch.bfloat16, device='cuda')
        assert 'one image has more than 2147483647 elements' in cuda.refusal(large)
        assert depthwise_conv2d(*fake_arguments(torch.float16)).shape == (2, 4, 9, 9)


def test_reasons_of_strides_and_counts_of_elements(monkeypatch):
    monkeypatch.setattr(cuda, '_refusal_of_triton', lambda index: None)
    with FakeTensorMode(), torch.device('cuda'):
        text = explain(depthwise_conv2d, *fake_arguments(torch.bfloat16), stride=300)
        assert 'triton: not used, the stride (300, 300) is above 16' in text
        weight, positions = torch.empty(1, 1, 70_000), torch.empty(2, 1, 1, 70_000)
        text = explain(dcls_kernel2d, weight, positions, kernel_size=5)
        assert 'triton: not used, a kernel has 70000 elements, more than 65535' in text


def test_compiled_graph_holds_the_registered_operators(monkeypatch):
    monkeypatch.setattr(cuda, '_refusal_of_triton', lambda index: None)
    torch._dynamo.reset()
    graphs = []

    def capture(module, inputs):
        graphs.append(module)
        return module

    with FakeTensorMode(), torch.device('cuda'):
        model = torch.nn.Sequential(DepthwiseConv2d(16, 7), InceptionDWConv2d(16))
        torch.compile(model, backend=capture, fullgraph=True)(torch.empty(2, 16, 9, 9))
    (graph,) = graphs
    assert [str(node.target) for node in graph.graph.nodes if node.op == 'call_function'] == [
        'mmlk.depthwise_conv2d.default',
        'mmlk.inception_dwconv2d.default',
    ]


def test_maps_of_every_size_share_their_kernels():
    constants = set()
    for size in ((200, 336), (186, 333), (57, 75), (128, 171)):
        x = runtime.meta(2, 96, *size, last=True)
        with runtime.recording() as launches:
            y = depthwise.forward(x, runtime.meta(96, 1, 7, 7), None, (1, 1))
            depthwise.backward(y, x, runtime.meta(96, 1, 7, 7), (1, 1), [True] * 3)
        constants |= {(each.kernel.__name__, *sorted(each.options.items())) for each in launches}
        assert len(launches) == 4  # forward, input gradient, partial sums, their sum
    assert len(constants) <= 6  # convolution and its gradient have strips of two lengths


def test_number_of_partial_sums_is_bounded():
    assert runtime.splits(work=10**6, programs=1, least=8) == 1024
    assert runtime.splits(work=10**6, programs=3, least=8) == 342
    assert runtime.splits(work=16, programs=1, least=8) == 2
    assert runtime.splits(work=0, programs=1, least=8) == 1


def test_nothing_is_launched_on_an_empty_grid():
    runtime.launch(None, (0, 3), torch.empty(0))


def hold_lock(name, taken, release):
    with runtime._compile_lock(name):
        taken.set()
        release.wait(30)


def test_one_process_compiles_at_a_time():
    context = multiprocessing.get_context('spawn')
    taken, release = context.Event(), context.Event()
    other = context.Process(target=hold_lock, args=('kernel', taken, release))
    other.start()
    assert taken.wait(60)
    with open(runtime._lock_path('kernel'), 'a') as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    release.set()
    other.join()
    with runtime._compile_lock('kernel'):
        pass
