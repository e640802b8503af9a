"""Loading checkpoints safely: whole files, no pickle executed, no part of the model left uncovered."""

from __future__ import annotations

import argparse
import os
import re
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader

from mmlk.checkpoints import keymaps, zoo
from mmlk.checkpoints.classifiers import START_FROM_OTHER_TASK
from mmlk.checkpoints.errors import UnusableCheckpoint
from mmlk.checkpoints.fetch import locate
from mmlk.checkpoints.read import load_file, unwrap

_SCHEMES = ('', 'http://', 'https://', zoo.SCHEME)
"""What our reader answers for; object stores and other zoos stay with MMEngine."""

# Modules of a model that are no backbone.
_HEADS = re.compile(r'(?:\w*_)?(?:head|neck)s?$')

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
    """Let MMEngine's loading go through our reader, and no arbitrary pickle, from here on.

    The reader checks the whole file before it is loaded, names it where it is refused, and removes
    what wrappers add to names (:func:`plain_state`). It serves ``load_from``, ``resume`` and every
    ``Pretrained`` initialisation, for local files, HTTP and ``mmlk://``. What reads files by other
    ways is kept from executing pickles by torch's environment switch.

    Args:
        trust: Permit arbitrary pickles, as the user asked for by flag.
    """
    torch.serialization.add_safe_globals(_SAFE_GLOBALS)
    if not trust and 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' not in os.environ:
        os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'

    def load_from_file(filename: str, map_location: Any = None, **_: Any) -> dict:
        path = locate(filename)
        content = load_file(path, unsafe=trust, map_location=map_location, allowed=_SAFE_GLOBALS)
        state, info = unwrap(content, path)
        container = info.container == 'state_dict'
        notes = [] if container else list(info.notes)
        plain = dict(content if container else {}, state_dict=plain_state(state, notes))
        for note in notes:
            print_log(f'{filename}: {note}', logger='current')
        return plain

    CheckpointLoader.register_scheme(_SCHEMES, load_from_file, force=True)


def plain_state(state: dict, notes: list[str]) -> OrderedDict:
    """A model's state dict without what DDP, FSDP, recomputation and torch.compile add to names.

    A state dict of heads and necks alone is marked so that a backbone of this package, which refuses
    dicts that do not cover it, keeps its weights (``metadata['absent']``).

    Args:
        state: Name to tensor.
        notes: Receives a sentence per change.
    """
    bare = [keymaps.bare_name(key) for key in state]
    wrapper = 'module.' if bare and all(key.startswith('module.') for key in bare) else ''
    plain = OrderedDict(
        (key.removeprefix(wrapper), value) for key, value in zip(bare, state.values(), strict=True)
    )
    changed = [old for old, new in zip(state, plain, strict=True) if old != new]
    if changed:
        notes.append(f'{len(changed)} names freed of wrappers, such as {changed[0]}')
    plain._metadata = OrderedDict(
        (keymaps.bare_name(f'{key}.').removeprefix(wrapper).rstrip('.'), value)
        for key, value in getattr(state, '_metadata', {}).items()
    )
    tops = dict.fromkeys(key.split('.', 1)[0] for key in plain)
    if tops and all(map(_HEADS.match, tops)):
        plain._metadata['backbone'] = dict(absent=True)
        notes.append(f'holds {", ".join(tops)} alone; the backbone keeps the weights that it has')
    return plain


class ClassNames(Hook):
    """Compares the class names of training with those of the test data, in their order."""

    def before_test(self, runner: Runner) -> None:
        """An exported file has its class names inside.

        Raises:
            UnusableCheckpoint: If the file tells another number of classes apart.
        """
        trained = getattr(runner.model, 'trained_classes', None)
        if trained is None:
            return
        tested = _tested(runner)
        if tested and len(trained) != len(tested):
            raise UnusableCheckpoint(
                f'the exported file tells {len(trained)} classes apart, and the test data have '
                f'{len(tested)}; it belongs to another config'
            )
        self._compare(runner, list(trained), tested)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """A checkpoint has them in its metadata."""
        meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
        trained = list(meta.get('classes') or meta.get('CLASSES') or ())
        self._compare(runner, trained, _tested(runner))

    def _compare(self, runner: Runner, trained: list[str], tested: list[str]) -> None:
        pairs = enumerate(zip(trained, tested))
        odd = next(((index, *pair) for index, pair in pairs if pair[0] != pair[1]), None)
        if odd:
            runner.logger.warning(
                'class %d is %r in the checkpoint and %r in the test data: figures mean nothing '
                'unless both are one class',
                *odd,
            )


def _tested(runner: Runner) -> list[str]:
    """Class names of the test data; a plain data set of torch has none."""
    names = getattr(runner.test_loop.dataloader.dataset, 'metainfo', {})
    return list(names.get('classes') or ())


def require_coverage(model: torch.nn.Module) -> None:
    """Make loading a state dict raise where the model would keep untrained weights.

    MMEngine only logs keys that a checkpoint lacks or has in another shape, and a test would then
    report the accuracy of random weights. Auxiliary heads take no part in a test and may be absent.
    Backbones of this package judge what concerns them, also under their authors' names.
    """
    from mmlk.heads import Head  # operators, which a config alone does not need
    from mmlk.networks.base import Network

    given: dict[str, tuple] = {}

    def note(_: torch.nn.Module, state: dict, prefix: str, *__: Any) -> None:
        given.clear()
        given.update((key.removeprefix(prefix), tuple(value.shape)) for key, value in state.items())

    def check(module: torch.nn.Module, keys: Any) -> None:
        aside = tuple(
            f'{name}.' for name, each in module.named_modules() if isinstance(each, Network)
        )
        own = {
            key: tuple(value.shape)
            for key, value in module.state_dict().items()
            if not key.startswith(('auxiliary_head', *aside))
        }
        unlike = [key for key in own if given.get(key, own[key]) != own[key]]
        if unlike:
            raise RuntimeError(
                f'require_coverage: {len(unlike)} tensors have other shapes, first {unlike[0]}: '
                f'{given[unlike[0]]} in the checkpoint, {own[unlike[0]]} in the model; it belongs to '
                'another config or another number of classes'
            )
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
    for part in model.modules():
        if isinstance(part, Head):
            part.tells_resized = False  # it is refused below
    model.register_load_state_dict_pre_hook(note)
    model.register_load_state_dict_post_hook(check)


def refuse_classifiers(model: torch.nn.Module) -> None:
    """Make loading a classifier's file raise where the model is for another task.

    Its backbone would be taken and every head left random, which ``load_from`` is not meant for.
    """

    def check(module: torch.nn.Module, state: dict, prefix: str, *_: Any) -> None:
        parts = {key[len(prefix) :].split('.', 1)[0] for key in state if key.startswith(prefix)}
        if parts == {'backbone', 'head'} and not hasattr(module, 'head'):
            raise ValueError(
                f'refuse_classifiers: the file holds a classifier, the model is a '
                f'{type(module).__name__}; {START_FROM_OTHER_TASK}'
            )

    while is_model_wrapper(model):
        model = model.module
    model.register_load_state_dict_pre_hook(check)
