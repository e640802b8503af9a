"""State dicts as the authors publish them, made from the recorded key lists.

The lists come from the authors' own code, so nothing here depends on this package's networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import nn

from tests.golden_weights import golden_tensor, load_golden

# recorded network -> family, arch (None: a layout that no published variant has)
NETWORKS = {
    'inceptionnext/atto': ('inceptionnext', 'atto'),
    'inceptionnext/tiny': ('inceptionnext', 'tiny'),
    'inceptionnext/base': ('inceptionnext', 'base'),
    'slak/slak_micro': ('slak', None),
    'slak/slak_tiny': ('slak', 'tiny'),
    'slak/slak_tiny_k31': ('slak', 'tiny_31'),
    'slak/slak_base': ('slak', 'base'),
    'dcls_convnext/tiny': ('dcls_convnext', 'tiny'),
    'dcls_convnext/base': ('dcls_convnext', 'base'),
    'recnext/recnext_m0': ('recnext', 'm0'),
    'recnext/recnext_m1': ('recnext', 'm1'),
    'recnext/recnext_m3': ('recnext', 'm3'),
    'recnext/recnext_m5': ('recnext', 'm5'),
    'recnext/recnext_a0': ('recnext', 'a0'),
    'recnext/recnext_a2': ('recnext', 'a2'),
    'recnext/recnext_a3': ('recnext', 'a3'),
    'recnext/recnext_a5': ('recnext', 'a5'),
    'recnext/recnext_t': ('recnext', 't'),
    'recnext/recnext_b': ('recnext', 'b'),
    'recnext/recnext_t_share_channel': ('recnext', 't_share_channel'),
    'recnext/recnext_s_share_channel': ('recnext', 's_share_channel'),
    'recnext/recnext_b_share_channel': ('recnext', 'b_share_channel'),
    'replknet/micro': ('replknet', None),
    'replknet/micro_xl': ('replknet', None),
    'unireplknet/micro': ('unireplknet', None),
}

HEADS = {
    'inceptionnext': ('head.',),
    'slak': ('norm.', 'head.'),
    'dcls_convnext': ('norm.', 'head.'),
    'recnext': ('head.',),
    'replknet': ('norm.', 'head.'),
    'unireplknet': ('norm.', 'head.'),
}


@lru_cache
def entries(network: str) -> tuple[tuple[str, tuple[int, ...], torch.dtype], ...]:
    """(key, shape, dtype) of the recorded classifier, in order."""
    return tuple(
        (key, tuple(shape), getattr(torch, dtype))
        for key, shape, dtype, _ in load_golden(network)['state_dict']
    )


def classifier(network: str) -> Mapping[str, torch.Tensor]:
    """State dict of the recorded classifier, without values."""
    return MappingProxyType(_classifier(network))


@lru_cache
def _classifier(network: str) -> dict[str, torch.Tensor]:
    return {
        key: torch.empty(shape, dtype=dtype, device='meta')
        for key, shape, dtype in entries(network)
    }


def headless(state: Mapping, network: str) -> dict[str, torch.Tensor]:
    """The part of a state dict that a backbone keeps."""
    heads = HEADS[NETWORKS[network][0]]
    return {key: value for key, value in state.items() if not key.startswith(heads)}


def output_norms(channels=(8, 16, 32, 64)) -> dict[str, torch.Tensor]:
    """The norms that a dense network adds to a headless backbone."""
    return {
        f'norm{i}.{name}': torch.empty(width, device='meta')
        for i, width in enumerate(channels)
        for name in ('weight', 'bias')
    }


def filled(network: str) -> dict[str, torch.Tensor]:
    """State dict of the recorded classifier with values, every dimension cut to at most 4."""
    return {
        key: golden_tensor(key, [min(edge, 4) for edge in shape], dtype)
        for key, shape, dtype in entries(network)
    }


class Holder(nn.Module):
    """A network without a forward, whose state dict has exactly the given keys and values."""

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        for key, value in state.items():
            *path, name = key.split('.')
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            if isinstance(value, nn.Parameter):
                module.register_parameter(name, value)
            else:
                module.register_buffer(name, value.clone())
