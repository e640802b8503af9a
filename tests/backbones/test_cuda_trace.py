"""Every backbone is one graph for `torch.compile` on CUDA, and it holds the operators with kernels.

No GPU is needed: weights and image are fake CUDA tensors, and the graph is captured, not run.
"""

import pytest
import torch
from torch._subclasses import FakeTensorMode

import mmlk.backbones  # noqa: F401  fills the registry
from mmlk.ops import cuda
from mmlk.registry import MODELS
from tests.cases import MICRO_ARCHS

OPERATORS = {
    'DCLSConvNeXt': {'depthwise_conv2d', 'dcls_kernel_fused'},
    'InceptionNeXt': {'inception_dwconv2d'},
    'SLaK': {'large_kernel_branches'},
    'RecNeXt': {'recconv2d'},
}


@pytest.mark.slow
@pytest.mark.parametrize('name', OPERATORS)
def test_backbone_on_cuda_is_one_graph_of_operators_with_kernels(name, monkeypatch):
    monkeypatch.setattr(cuda, '_refusal_of_triton', lambda index: None)
    torch._dynamo.reset()
    graphs = []

    def capture(module, inputs):
        graphs.append(module)
        return module

    with FakeTensorMode(), torch.device('cuda'):
        model = MODELS.build(dict(type=f'mmlk.{name}', arch=MICRO_ARCHS[name]))
        torch.compile(model, backend=capture, fullgraph=True)(torch.empty(2, 3, 64, 64))
    assert len(graphs) == 1
    targets = {str(node.target) for node in graphs[0].graph.nodes if node.op == 'call_function'}
    found = {each.split('.')[1] for each in targets if each.startswith('mmlk.')}
    assert OPERATORS[name] <= found
