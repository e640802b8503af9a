"""Learning rates over a whole run, against the closed form that the recipes' MMCV 1.x computed."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim.scheduler import LinearLR, MultiStepLR, PolyLR
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
        assert found[step] == pytest.approx((1 - step / 40000) ** 0.9, rel=1e-6), step


def epoch_rates(name, iterations_per_epoch, sampled):
    """Learning rate at sampled (epoch, iteration in it), for a base rate of 1, as the runner steps."""
    config = Config.fromfile(mmlk.config_path(name))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(optimizer=optimizer, **scheduler))
        for scheduler in config.param_scheduler
    ]
    assert [type(s) for s in schedulers] == [LinearLR, MultiStepLR]
    found = {}
    for epoch in range(config.train_cfg.max_epochs):
        for iteration in range(iterations_per_epoch):
            if (epoch, iteration) in sampled:
                found[epoch, iteration] = optimizer.param_groups[0]['lr']
            optimizer.step()
            schedulers[0].step()
        schedulers[1].step()
    return found


@pytest.mark.parametrize(
    ('name', 'first', 'steps'),
    [
        ('_base_/schedules/coco_1x.py', 1e-3, (8, 11)),
        ('_base_/schedules/coco_3x.py', 1e-3, (27, 33)),
        ('cascade_mask_rcnn_slak_t_36e_coco.py', 1e-3, (27, 33)),
        ('mask_rcnn_recnext_m3_coco.py', 1e-6, (8, 11)),
        ('mask_rcnn_recnext_a5_coco.py', 1e-6, (8, 11)),
    ],
)
def test_coco_warms_up_over_500_iterations_and_falls_in_two_steps(name, first, steps):
    epochs = [0, 1, *(epoch + shift for epoch in steps for shift in (-1, 0))]
    sampled = {
        (epoch, iteration) for epoch in epochs for iteration in (0, 1, 49, 250, 499, 500, 501, 599)
    }
    found = epoch_rates(name, 600, sampled)
    assert found.keys() == sampled
    for (epoch, iteration), rate in found.items():
        done = epoch * 600 + iteration
        warm_up = min(1 - (1 - done / 500) * (1 - first), 1.0)
        regular = 0.1 ** sum(epoch >= step for step in steps)
        assert rate == pytest.approx(warm_up * regular, rel=1e-9), (epoch, iteration)
