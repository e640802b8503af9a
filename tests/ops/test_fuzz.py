"""A share of the random cases of tests/ops/fuzz.py; ``python -m tests.ops.fuzz`` runs any number."""

import collections
import os

import pytest
import torch

from tests.ops import fuzz

CASES, PARTS = 2000, 10


@pytest.mark.slow
@pytest.mark.parametrize('loops', ['1', '0'], ids=['compiled', 'torch'])
@pytest.mark.parametrize('part', range(PARTS))
def test_random_calls_equal_the_reference(part, loops, monkeypatch):
    """``MMLK_FUZZ_SEED`` takes another seed; it is printed, and every failure names its case."""
    monkeypatch.setenv('MMLK_JIT', loops)
    seed, share = int(os.environ.get('MMLK_FUZZ_SEED', '0')), CASES // PARTS // 2
    counts, failures = collections.Counter(), []
    for number in range(part * share, (part + 1) * share):
        try:
            counts[fuzz.check(seed, number)] += 1
        except AssertionError as error:
            failures.append(str(error))
    print(f'seed {seed}, MMLK_JIT={loops}\n{fuzz.table(counts)}')
    assert not failures, '\n'.join(failures)


def map_with_gaps(case, channels):
    """Some of the channels of a wider channels-last map: its pixels have gaps between them."""
    n, h, w = case.size(1, 2, 3), case.size(2, 5, 9), case.size(1, 3, 16)
    wide = torch.randn(n, h, w, channels + 3, dtype=case.dtype)
    return wide[..., 2 : 2 + channels].permute(0, 3, 1, 2)


@pytest.mark.parametrize('name', sorted(fuzz.CALLS))
def test_channels_of_a_wider_map_equal_the_reference(name, monkeypatch):
    monkeypatch.setattr(fuzz, 'CALLS', {name: fuzz.CALLS[name]})
    monkeypatch.setattr(fuzz.Case, 'map', map_with_gaps)
    for number in range(8):
        fuzz.check(1, number)


def test_a_wrong_result_and_a_written_operand_are_found(monkeypatch):
    number = next(
        n
        for n in range(2000)
        if (case := fuzz.Case(0, n)).name == 'channel_mlp' and case.mode == 'no_grad'
    )
    fuzz.check(0, number)
    right = fuzz.ops.channel_mlp

    def wrong(x, *args, **options):
        return right(x, *args, **options) + 0.01

    def writing(x, *args, **options):
        y = right(x, *args, **options)
        x.data[(0,) * x.dim()] += 1
        return y

    for broken, message in ((wrong, 'error'), (writing, 'written')):
        monkeypatch.setattr(fuzz.ops, 'channel_mlp', broken)
        with pytest.raises(AssertionError, match=message):
            fuzz.check(0, number)
