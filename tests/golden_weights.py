"""Deterministic weights and inputs shared with the recorded outputs in ``tests/golden``.

A value depends only on the state-dict key and the shape (the generator's seed is the CRC-32 of the
key), so two implementations with the same keys hold the same network without sharing a file.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / 'golden'


def load_golden(name: str) -> dict:
    """Recorded case ``family/name`` (without ``.json``)."""
    return json.loads((GOLDEN / f'{name}.json').read_text())


def golden_tensor(key: str, shape, dtype: torch.dtype) -> torch.Tensor:
    """Value of the state-dict entry ``key``."""
    shape = tuple(shape)
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    draw = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF).standard_normal(shape)
    if key.endswith('running_var'):
        value = 0.5 + np.abs(draw)
    elif key.endswith('running_mean'):
        value = 0.1 * draw
    elif key.endswith('.P'):
        value = np.clip(4.0 * draw, -8.0, 8.0)
    elif len(shape) <= 1:
        value = 1.0 + 0.1 * draw if key.endswith(('weight', 'gamma')) else 0.1 * draw
    else:
        draw /= np.sqrt(max(int(np.prod(shape[1:])), 1))  # in place: most of a network is here
        value = draw
    return torch.from_numpy(np.ascontiguousarray(value)).to(dtype).reshape(shape)


def load_golden_weights(module: torch.nn.Module, rename=None) -> torch.nn.Module:
    """Fill ``module`` in place; ``rename(key)`` maps its keys to the recorded network's keys."""
    filled = {}
    for key, tensor in module.state_dict().items():
        filled[key] = golden_tensor(rename(key) if rename else key, tensor.shape, tensor.dtype)
    module.load_state_dict(filled, strict=True)
    return module


def golden_input(shape, seed: int = 0) -> torch.Tensor:
    """Standard-normal float32 input of ``shape``."""
    return torch.from_numpy(
        np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)
    )


def sampled(tensor: torch.Tensor, summary: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of ``tensor`` at the recorded positions, and the recorded values, as float64."""
    assert list(tensor.shape) == summary['shape'], (list(tensor.shape), summary['shape'])
    flat = tensor.detach().to(torch.float64).flatten()
    return flat[summary['index']], torch.tensor(summary['values'], dtype=torch.float64)


def assert_matches(
    name: str, tensor: torch.Tensor, summary: dict, tolerance: float, floor: float = 1e-3
) -> None:
    """Compare at the recorded positions, against ``tolerance`` times the recorded spread."""
    got, want = sampled(tensor, summary)
    worst = (got - want).abs().max().item()
    bound = tolerance * max(summary['std'], floor)
    assert worst <= bound, f'{name}: error {worst:.3g} > {bound:.3g}'
