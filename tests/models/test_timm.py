"""Registration with timm, in a process of its own, since it stays for the life of a process."""

import json
import subprocess
import sys

import pytest
import torch

import mmlk
from mmlk.models import names
from tests.classification.models import published
from tests.tools.workbench import ROOT

pytest.importorskip('timm')

PROGRAM = """
import json, sys, warnings
warnings.simplefilter('error', UserWarning)
import timm, torch
from timm.optim import create_optimizer_v2

before = set(timm.list_models())
assert timm.list_models('mmlk_*') == []
import mmlk.timm

file = sys.argv[1]
out = dict(kept=before <= set(timm.list_models()), names=timm.list_models('mmlk_*'))
out['pretrained'] = timm.list_models('mmlk_*', pretrained=True)
whole = timm.create_model('mmlk_recnext_m0', pretrained_cfg_overlay=dict(file=file), pretrained=True)
by_path = timm.create_model('mmlk_recnext_m0', checkpoint_path=file)
out['same'] = all(
    torch.equal(a, b) for a, b in zip(whole.state_dict().values(), by_path.state_dict().values())
)
with torch.no_grad():
    tagged = timm.create_model('mmlk_recnext_m0.base_300e_in1k', num_classes=5)
    out['tagged'] = [tagged.pretrained_cfg['tag'], tagged.num_classes]
    maps = timm.create_model('mmlk_recnext_m0', features_only=True, out_indices=(1, 3), in_chans=4)
    out['maps'] = [list(y.shape) for y in maps(torch.ones(2, 4, 64, 64))]
    out['channels'] = maps.feature_info.channels()
data = timm.data.resolve_model_data_config(whole)
out['data'] = [data['input_size'], data['crop_pct'], data['interpolation']]
create_optimizer_v2(whole, opt='adamw', lr=1e-3, weight_decay=0.05)
try:
    timm.create_model('mmlk_recnext_m0', cache_dir='here')
except ValueError as error:
    out['cache'] = str(error)
print(json.dumps(out))
"""


@pytest.fixture(scope='module')
def told(tmp_path_factory):
    file = tmp_path_factory.mktemp('weights') / 'recnext_m0.pth'
    torch.save(published('recnext/recnext_m0'), file)
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, str(file)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_timm_lists_every_network_and_every_tag(told):
    assert told['kept'], 'models of timm have gone'
    assert set(told['names']) == {f'mmlk_{name}' for name in mmlk.list_models()}
    assert set(told['pretrained']) == {
        f'mmlk_{variant.name}.{tag}'
        for variant in names.VARIANTS.values()
        for tag in variant.weights
    }


def test_timm_makes_classifiers_and_feature_extractors(told):
    assert told['same'], 'a file given in two ways gave two results'
    assert told['tagged'] == ['base_300e_in1k', 5]
    assert told['maps'] == [[2, 80, 8, 8], [2, 320, 2, 2]] and told['channels'] == [80, 320]
    assert told['data'] == [[3, 224, 224], 0.875, 'bicubic']
    assert "cache_dir 'here' is not used" in told['cache']
