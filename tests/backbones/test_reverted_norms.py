"""MMEngine replaces SyncBN by a class of its own in runs of one process; nothing else may change."""

import pytest
import torch
from mmengine.model import revert_sync_batchnorm

from mmlk import backbones
from mmlk.ops import jit
from tests.cases import assert_close

SMALL = dict(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128))
NETWORKS = {
    'InceptionNeXt': SMALL,
    'SLaK': SMALL,
    'RecNeXt': dict(SMALL, series='m'),
}


@pytest.mark.skipif(jit.refusal() is not None, reason=f'no compiled loops: {jit.refusal()}')
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', NETWORKS)
def test_reverted_network_runs_the_same_compiled_loops(name, training, monkeypatch):
    launches = []
    launch = jit.engine.Compiled.__call__
    monkeypatch.setattr(
        jit.engine.Compiled, '__call__', lambda self, *a: launches.append(1) or launch(self, *a)
    )
    x = torch.randn(2, 3, 64, 64)
    found = []
    for norm in ('BN', 'SyncBN'):
        torch.manual_seed(0)
        network = getattr(backbones, name)(
            arch=NETWORKS[name], norm_cfg=dict(type=norm), drop_path_rate=0.0
        )
        if norm == 'SyncBN':
            network = revert_sync_batchnorm(network)
            assert any(type(m).__name__ == '_BatchNormXd' for m in network.modules())
        network.train(training)
        launches.clear()
        outputs = network(x)
        if training:
            sum(y.square().mean() for y in outputs).backward()
        found.append((outputs, len(launches)))
    assert found[0][1] == found[1][1] > 0
    for mine, theirs in zip(found[1][0], found[0][0], strict=True):
        assert_close('map', mine, theirs, 1e-6)
