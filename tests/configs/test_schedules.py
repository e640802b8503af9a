"""Learning rates over a whole run, against the closed form that the recipes' MMCV 1.x computed."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim.scheduler import LinearLR, PolyLR
from mmengine.registry import PARAM_SCHEDULERS

import mmlk


def rates(name, iterations):
    """Learning rate at each iteration, for a base rate of 1."""
    config = Config.fromfile(mmlk.config_path(name))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(optimizer=optimizer, **scheduler))
        for scheduler in config.param_scheduler
    ]
    assert all(isinstance(s, LinearLR | PolyLR) for s in schedulers)
    found = []
    for _ in range(iterations):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


def test_160k_warms_up_and_decays_linearly_from_the_start():
    found = rates('_base_/schedules/ade20k_160k.py', 160000)
    for step in (0, 1, 750, 1499, 1500, 1501, 80000, 159999):
        warm_up = min(1e-6 + (1 - 1e-6) * step / 1500, 1.0)
        assert found[step] == pytest.approx(warm_up * (1 - step / 160000), rel=1e-6), step


def test_40k_decays_with_power_0_9_and_no_warm_up():
    found = rates('_base_/schedules/ade20k_40k.py', 40000)
    for step in (0, 1, 20000, 39999):
        assert found[step] == pytest.approx((1 - step / 40000)**0.9, rel=1e-6), step
