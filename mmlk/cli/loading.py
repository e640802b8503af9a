"""Loading checkpoints safely: no pickle is executed, and no part of the model is left uncovered."""

from __future__ import annotations

import argparse
import os
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseTTAModel, is_model_wrapper

# What MMEngine's and the authors' checkpoints hold beside tensors and plain containers. NumPy's two
# constructors are asked for by way of what they pickle, because their module moved between versions
# 1 and 2.
_SAFE_GLOBALS = [
    argparse.Namespace,
    HistoryBuffer,
    np.ndarray,
    np.dtype,
    np.zeros(1).__reduce__()[0],
    np.float64(0).__reduce__()[0],
    *(type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'int32', 'uint8', 'bool')),
]


def _statistic(owner: type, name: str) -> Any:
    """The one use that a pickled ``HistoryBuffer`` makes of ``getattr``: naming its statistics."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise ValueError(
            f'_statistic: a checkpoint asks for {name!r} of {owner!r}, which no log has'
        )
    return getattr(owner, name)


# the restricted unpickler knows an allowed function by these attributes
_statistic.__module__ = 'builtins'
_statistic.__name__ = _statistic.__qualname__ = 'getattr'
_SAFE_GLOBALS.append(_statistic)


def read_only_tensors(trust: bool = False) -> None:
    """Let this process load MMEngine's own checkpoints, and no arbitrary pickle, from here on.

    MMEngine falls back to executing the pickle where safe loading fails; torch's environment switch
    turns that into an error.

    Args:
        trust: Permit arbitrary pickles, as the user asked for by flag.
    """
    torch.serialization.add_safe_globals(_SAFE_GLOBALS)
    if not trust and 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' not in os.environ:
        os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'


def require_coverage(model: torch.nn.Module) -> None:
    """Make loading a state dict raise where the model would keep untrained weights.

    MMEngine only logs keys that a checkpoint lacks, and a test would then report the accuracy of
    random weights. Auxiliary heads take no part in a test and may be absent.
    """

    def check(_: torch.nn.Module, keys: Any) -> None:
        missing = [
            key
            for key in keys.missing_keys
            if 'num_batches_tracked' not in key and not key.startswith('auxiliary_head')
        ]
        if missing:
            raise RuntimeError(
                f"require_coverage: the checkpoint lacks {len(missing)} of the model's tensors, "
                f'first {", ".join(missing[:3])}; it belongs to another config'
            )

    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    model.register_load_state_dict_post_hook(check)
