"""Whole dense networks of the authors: their checkpoints rebuilt from keys, their recorded outputs.

``tests/golden/dense/README.md`` says how the files were made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

import mmlk
from mmlk.cli import loading
from mmlk.cli.config import drop_pretrained
from tests.cases import GOLDEN_NETWORK
from tests.golden_weights import golden_tensor, load_golden, sampled


class AuthorsNetwork:
    """One file of ``tests/golden/dense``: what its authors' checkpoint holds and computes."""

    def __init__(self, name: str):
        self.golden = load_golden(f'dense/{name}')
        self.config = Config.fromfile(mmlk.config_path(self.golden['our_config']))

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors under the authors' keys, in the authors' order; shared ones are one tensor."""
        fill_key, shared = self.golden['fill_key'] or {}, {}
        tweak = self.golden['weight_tweak_after_golden_fill'] or dict(suffixes=[], scale=1)
        values = self.golden['values_after_golden_fill'] or {}
        state = {}
        for key, shape, dtype in self.golden['state_dict']:
            source = fill_key.get(key, key)
            if source not in shared:
                shared[source] = golden_tensor(source, shape, getattr(torch, dtype))
            state[key] = shared[source]
            if key.endswith(tuple(tweak['suffixes'])):
                state[key] *= tweak['scale']
            if key in values:
                state[key] = torch.tensor(values[key])
        return state

    def write(self, path: Path) -> Path:
        """The checkpoint as MMCV 1.x saves it."""
        content = dict(meta=dict(epoch=1, iter=1), state_dict=self.state_dict(), optimizer={})
        torch.save(content, path)
        return path

    def load(self, folder: Path) -> nn.Module:
        """The network of our config with the authors' file, as ``tools/test.py`` loads it."""
        init_default_scope(self.config.default_scope)
        with no_random_values():
            model = revert_sync_batchnorm(MODELS.build(drop_pretrained(self.config.model))).eval()
        loading.read_only_tensors()
        loading.require_coverage(model)
        path = self.write(folder / 'authors.pth')
        try:
            load_checkpoint(model, str(path), map_location='cpu')
        finally:
            path.unlink()
        return model


@contextmanager
def no_random_values() -> Iterator[None]:
    """New parameters are NaN: drawing values that are replaced or not looked at takes seconds."""
    names = ('kaiming_uniform_', 'kaiming_normal_', 'trunc_normal_', 'normal_', 'uniform_')
    with ExitStack() as stack:
        for name in names:
            fill = lambda tensor, *_, **__: tensor.detach().fill_(torch.nan)  # noqa: E731
            stack.enter_context(mock.patch.object(nn.init, name, fill))
        yield


@contextmanager
def recorded_outputs(**modules: nn.Module) -> Iterator[dict[str, Any]]:
    """Outputs of the modules by the given names, from the forward passes made inside.

    Heads call their ``forward`` past the hooks of the module, so that it is wrapped here.
    """
    outputs: dict[str, Any] = {}

    def recording(name: str, forward: Callable) -> Callable:
        def wrapped(*args, **kwargs):
            outputs[name] = forward(*args, **kwargs)
            return outputs[name]

        return wrapped

    with ExitStack() as stack:
        for name, module in modules.items():
            wrapped = recording(name, module.forward)
            stack.enter_context(mock.patch.object(module, 'forward', wrapped))
        yield outputs


def levels(name: str, maps: Iterable[Tensor]) -> dict[str, Tensor]:
    """Maps of several levels by their recorded names, ``name.0`` and so on."""
    return {f'{name}.{i}': y for i, y in enumerate(maps)}


def with_index(summary: dict) -> dict:
    """A recorded output with the places of its values: evenly spaced in the flattened tensor."""
    n, m = math.prod(summary['shape']), len(summary['values'])
    return dict(summary, index=[i * (n - 1) // max(m - 1, 1) for i in range(m)])


def deviations(outputs: dict[str, Tensor], recorded: dict[str, dict]) -> dict[str, float]:
    """Largest difference of each recorded output, its mean and spread included, in its spreads.

    Raises:
        AssertionError: If an output is not recorded or was not computed.
    """
    assert set(outputs) == set(recorded)
    found = {}
    for name, summary in recorded.items():
        got, want = sampled(outputs[name], with_index(summary))
        whole = outputs[name].double()
        figures = [
            (got - want).abs().max().item(),
            abs(whole.mean().item() - summary['mean']),
            abs(whole.std().item() - summary['std']),
        ]
        found[name] = max(figures) / summary['std']
    return found


def wrong(found: dict[str, float]) -> dict[str, float]:
    """The deviations beyond the tolerance of recorded networks."""
    return {name: value for name, value in found.items() if not value <= GOLDEN_NETWORK}
