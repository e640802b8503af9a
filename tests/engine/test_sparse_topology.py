"""Densities, pruning, growth and averages against what the authors' code recorded."""

import zlib

import numpy as np
import pytest
import torch

from mmlk.engine import sparse_topology as topology
from tests.cases import GOLDEN_OPERATOR
from tests.golden_weights import assert_matches, golden_tensor, load_golden

GOLDEN = load_golden('slak/sparse')


def golden_mask(key, shape):
    fan_in = int(np.prod(shape[1:]))
    return golden_tensor(f'mask.{key}', shape, torch.float64) * fan_in**0.5 > -0.2533


def crc(mask):
    return zlib.crc32(np.packbits(mask.flatten().numpy()).tobytes())


@pytest.mark.parametrize(
    'case',
    GOLDEN['cosine_schedule'],
    ids=lambda case: f'p{case["prune_rate"]}-from{case["init_step"]}',
)
def test_prune_rates_are_the_authors(case):
    got = [
        topology.cosine_prune_rate(
            case['init_step'] + i, case['T_max'], case['prune_rate'], case['eta_min']
        )
        for i in range(len(case['values']))
    ]
    assert got == pytest.approx(case['values'], abs=1e-12)


def test_prune_rate_stays_at_its_end():
    assert topology.cosine_prune_rate(150, 100, 0.5) == pytest.approx(0.005)


@pytest.mark.parametrize(
    'case', GOLDEN['prune_grow']['cases'], ids=lambda case: f'{case["key"]}-{case["prune_rate"]}'
)
def test_pruning_and_growth_are_the_authors(case):
    key, shape = case['key'], case['shape']
    mask = golden_mask(key, shape)
    assert crc(mask) == case['mask_crc']
    weight = golden_tensor(key, shape, torch.float32) * mask
    pruned = topology.magnitude_prune(weight, mask, case['prune_rate'])
    assert crc(pruned) == case['pruned_crc']
    removed = int(mask.sum() - pruned.sum())
    assert removed == case['removed']
    gradient = golden_tensor(f'grad.{key}', shape, torch.float32)
    grown = topology.gradient_growth(pruned, gradient, removed)
    assert crc(grown) == case['gradient_growth']['crc']
    drawn = topology.bernoulli_growth(pruned, removed, torch.Generator().manual_seed(0))
    assert crc(drawn) == case['random_growth_torch_manual_seed_0_cpu']['crc']
    exact = topology.random_growth(pruned, removed, torch.Generator().manual_seed(0))
    assert int(exact.sum()) == case['nonzeros_before'] and bool((exact | ~pruned).all())
    # The same draw, cut at the right count instead of at a probability.
    assert int((exact & ~drawn).sum()) == 0 or int((drawn & ~exact).sum()) == 0


def test_averages_respect_masks_as_the_authors_do():
    record = GOLDEN['ema']
    key, shape = record['key'], record['result']['shape']
    old, new = golden_mask(f'old.{key}', shape), golden_mask(key, shape)
    average = golden_tensor(f'ema.{key}', shape, torch.float32) * old
    weight = golden_tensor(key, shape, torch.float32) * new
    grown = new & (average == 0)
    assert int(grown.sum()) == record['newly_grown']
    average = record['decay'] * average + (1 - record['decay']) * weight
    topology.average_masked(average, weight, new, grown)
    assert_matches('average', average, record['result'], GOLDEN_OPERATOR)
    assert int(average.count_nonzero()) == record['nonzero']


SHAPES = {'a': (64, 3, 4, 4), 'b': (256, 64), 'c': (64, 1, 51, 5), 'd': (8, 8)}


@pytest.mark.parametrize('density', [0.05, 0.3, 0.6, 1.0])
def test_erk_meets_the_density_and_favours_small_layers(density):
    densities = topology.erk_densities(SHAPES, density)
    sizes = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
    kept = sum(densities[name] * sizes[name] for name in SHAPES)
    assert kept == pytest.approx(density * sum(sizes.values()))
    assert all(0 < value <= 1 + 1e-9 for value in densities.values())
    assert densities['d'] >= densities['b']
    below = [densities[n] / (sum(SHAPES[n]) / sizes[n]) for n in SHAPES if densities[n] < 1 - 1e-9]
    assert below == pytest.approx(below[:1] * len(below))


def test_random_masks_have_the_exact_count_and_follow_the_seed():
    masks = [
        topology.random_mask((7, 13), 0.6, torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert [int(mask.sum()) for mask in masks] == [55, 55, 55]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize('shape', [(1, 1), (3, 5), (8, 2, 4, 4), (7, 1, 51, 5)])
def test_masks_survive_packing(shape):
    mask = torch.rand(shape) < 0.5
    packed = topology.pack_mask(mask)
    assert packed.numel() == -(-mask.numel() // 8)
    assert zlib.crc32(packed.numpy().tobytes()) == crc(mask)
    assert torch.equal(topology.unpack_mask(packed, shape), mask)


@pytest.mark.parametrize('value', [0.0, float('nan')])
def test_scores_that_order_nothing_are_refused(value):
    with pytest.raises(ValueError, match='gives no usable gradient'):
        topology.snip_densities({'a': torch.full((3, 3), value)}, 0.5)


def test_growth_cannot_exceed_what_is_free():
    full = torch.ones(4, 4, dtype=torch.bool)
    assert torch.equal(topology.random_growth(full, 3, torch.Generator()), full)
    assert torch.equal(topology.bernoulli_growth(full, 3, torch.Generator()), full)
    assert torch.equal(topology.gradient_growth(full, torch.randn(4, 4), 3), full)


def test_growth_counts_positions_whose_gradient_is_zero():
    mask = torch.tensor([True, False, True, False, False])
    gradient = torch.tensor([3.0, 0.0, 2.0, 0.0, 1.0])
    grown = topology.gradient_growth(mask, gradient, 2)
    assert grown.tolist() == [True, True, True, False, True]
