"""tools/test.py measures folded networks, which changes no metric."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tools import workbench


@pytest.mark.slow
def test_metrics_and_labels_are_those_of_the_unfolded_network(
    config, data_root, tmp_path, monkeypatch
):
    """With averaged weights, which are exchanged for the trained ones right before a test."""
    call = dict(monkeypatch=monkeypatch, cwd=tmp_path)
    average = "[dict(type='EMAHook', momentum=0.5)]"
    config = workbench.write_config(tmp_path, data_root, custom_hooks=average)
    workbench.call_tool('train.py', config, '--work-dir', 'run', **call)
    content = torch.load(tmp_path / 'run/iter_4.pth', weights_only=False)
    for weights in (content['state_dict'], content['ema_state_dict']):
        for key in weights:  # so that classes differ from place to place
            if key.endswith('conv_seg.weight'):
                weights[key] = torch.randn(weights[key].shape, generator=torch.manual_seed(0))
    torch.save(content, tmp_path / 'run/iter_4.pth')
    found = {}
    for name, flags in (('folded', []), ('whole', ['--no-fold'])):
        words = [config, 'run/iter_4.pth', '--work-dir', name, '--out', f'{name}_labels', *flags]
        workbench.call_tool('test.py', *words, **call)
        (log,) = (tmp_path / name).glob('*/*.log')
        assert ('Tested in folded form' in log.read_text()) == (name == 'folded')
        metrics = json.loads(next((tmp_path / name).glob('*/*.json')).read_text())
        labels = [
            np.asarray(Image.open(path)) for path in sorted((tmp_path / f'{name}_labels').iterdir())
        ]
        found[name] = {key: metrics[key] for key in ('mIoU', 'mAcc', 'aAcc')}, labels
    assert found['folded'][0] == pytest.approx(found['whole'][0], abs=0.02)
    assert len(found['whole'][1]) == 2
    for mine, theirs in zip(found['folded'][1], found['whole'][1], strict=True):
        assert (mine == theirs).mean() > 0.999
    assert len(np.unique(found['whole'][1][0])) > 1, 'a constant map proves nothing'
