"""Global state that a test may change, saved and restored around every test by tests/conftest.py.

`STATES` has one entry for each kind of state. Packages that are not loaded yet are not loaded here.
What importing a package adds (registered types, loggers, tables of mmlk) stays, since a second import
would not add it again.

Not here: filters of warnings, captured output and log handlers, which pytest restores itself, and
functools caches of mmlk. Those hold functions of their arguments alone; a test that patches what such
a function reads clears its cache.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch


class State(NamedTuple):
    """One kind of state: ``restore(save())`` changes nothing."""

    save: Callable[[], Any]
    restore: Callable[[Any], None]


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Restores every kind of `STATES` at the end, whatever happens between."""
    saved = [(state.restore, state.save()) for state in STATES.values()]
    with contextlib.ExitStack() as stack:
        for restore, value in saved:
            stack.callback(restore, value)
        yield


def _setting(get: Callable[[], Any], set_: Callable[[Any], None]) -> State:
    """A value with a getter and a setter; the setter is called where the value has changed."""

    def restore(value: Any) -> None:
        if get() != value:
            set_(value)

    return State(get, restore)


def _attributes(*places: tuple[Any, str]) -> State:
    def set_(values: list) -> None:
        for (owner, name), value in zip(places, values, strict=True):
            setattr(owner, name, value)

    return _setting(lambda: [getattr(owner, name) for owner, name in places], set_)


# ----------------------------------------------------------------------------------- the process


def _save_environment() -> dict[str, str]:
    # pytest writes the running test's name and removes it itself.
    return {key: value for key, value in os.environ.items() if key != 'PYTEST_CURRENT_TEST'}


def _restore_environment(saved: dict[str, str]) -> None:
    for key in _save_environment().keys() - saved.keys():
        del os.environ[key]
    os.environ.update(saved)


def _restore_arguments(saved: tuple[list[str], list[str]]) -> None:
    sys.path[:], sys.argv[:] = saved


def _loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(each for each in known if isinstance(each, logging.Logger))]


def _save_logging() -> tuple:
    return logging.root.manager.disable, [
        (each, each.level, each.propagate, each.disabled, list(each.handlers))
        for each in _loggers()
    ]


def _restore_logging(saved: tuple) -> None:
    logging.disable(saved[0])
    for logger, level, logger.propagate, logger.disabled, logger.handlers[:] in saved[1]:
        if logger.level != level:  # setting it clears a cache of every logger
            logger.setLevel(level)


def _save_random() -> tuple:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _restore_random(saved: tuple) -> None:
    random.setstate(saved[0])
    np.random.set_state(saved[1])
    torch.set_rng_state(saved[2])


def _opencv_threads() -> int | None:
    return sys.modules['cv2'].getNumThreads() if 'cv2' in sys.modules else None


def _set_opencv_threads(number: int | None) -> None:
    if number is not None:  # None: OpenCV was loaded in the meantime, with its own default
        sys.modules['cv2'].setNumThreads(number)


# ---------------------------------------------------------------------------------------- MMEngine


def _managers() -> list[type]:
    """MMEngine's classes of named instances: visualizers, loggers, message hubs, default scopes."""
    loaded = sys.modules.get('mmengine.utils.manager')
    return _descendants(loaded.ManagerMixin) if loaded else []


def _descendants(base: type) -> list[type]:
    return [base, *(found for child in base.__subclasses__() for found in _descendants(child))]


def _save_instances() -> dict[type, OrderedDict]:
    return {manager: manager._instance_dict.copy() for manager in _managers()}


def _restore_instances(saved: dict[type, OrderedDict]) -> None:
    for manager in _managers():
        manager._instance_dict = saved.get(manager, OrderedDict())


def forget_instances() -> None:
    """Drop every named instance of MMEngine, its default scope included, as in a new process."""
    _restore_instances({})


def _registries() -> list:
    loaded = sys.modules.get('mmengine.registry')
    if loaded is None:
        return []
    found = [each for each in vars(loaded).values() if isinstance(each, loaded.Registry)]
    for registry in found:  # grows while it is walked
        found += registry.children.values()
    return found


def _save_registries() -> list[tuple[dict, dict]]:
    return [(each.module_dict, dict(each.module_dict)) for each in _registries()]


def _restore_registries(saved: list[tuple[dict, dict]]) -> None:
    for table, entries in saved:
        added = [key for key in table.keys() - entries.keys() if _is_local(table[key])]
        for key in added:
            del table[key]
        table.update(entries)


def _is_local(value: object) -> bool:
    """Whether a function made ``value``: a test, then, and not an import."""
    return '<locals>' in getattr(value, '__qualname__', '')


def _save_readers() -> OrderedDict | None:
    """How MMEngine reads checkpoints, by the beginning of their address."""
    loaded = sys.modules.get('mmengine.runner.checkpoint')
    return loaded.CheckpointLoader._schemes.copy() if loaded else None


def _restore_readers(saved: OrderedDict | None) -> None:
    if saved is not None:
        loader = sys.modules['mmengine.runner.checkpoint'].CheckpointLoader
        imported = {
            key: read
            for key, read in loader._schemes.items()
            if key not in saved and not _is_local(read)
        }
        loader._schemes = OrderedDict(sorted({**saved, **imported}.items(), reverse=True))


# -------------------------------------------------------------------------------------- torch, mmlk


def _set_default_device(device: torch.device) -> None:
    # 'cpu' stands for no default at all, which costs nothing per call.
    torch.set_default_device(None if device.type == 'cpu' else device)


def _deterministic() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _autocast() -> list[tuple[str, bool, torch.dtype]]:
    return [
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        for device in ('cpu', 'cuda')
    ]


def _set_autocast(saved: list[tuple[str, bool, torch.dtype]]) -> None:
    for device, enabled, dtype in saved:
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)


def _forget_compiled_graphs(_: None) -> None:
    if 'torch._dynamo' in sys.modules:
        torch._dynamo.reset()


def _restore_safe_globals(saved: list) -> None:
    """Names that pickles may hold; those that importing a package has added stay."""
    known = {id(each) for each in saved}
    added = [
        each
        for each in torch.serialization.get_safe_globals()
        if id(each) not in known
        and str(getattr(each, '__module__', '')).startswith(('torch', 'accelerate'))
    ]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([*saved, *added])


def _save_mmlk() -> list[tuple[dict, dict, list[tuple[dict, dict]]]]:
    """Names of every loaded module of mmlk, and the entries of its module-level tables."""
    modules = [vars(each) for name, each in sys.modules.items() if name.startswith('mmlk')]
    return [
        (
            names,
            dict(names),
            [
                (table, dict(table))
                for name, table in names.items()
                if isinstance(table, dict) and not name.startswith('__')
            ],
        )
        for names in modules
    ]


def _restore_mmlk(saved: list[tuple[dict, dict, list[tuple[dict, dict]]]]) -> None:
    for names, bound, tables in saved:
        names.update(bound)
        for table, entries in tables:
            table.update(entries)


STATES = {
    'environment variables': State(_save_environment, _restore_environment),
    'working directory': _setting(os.getcwd, os.chdir),
    'sys.path and sys.argv': State(lambda: (sys.path[:], sys.argv[:]), _restore_arguments),
    'logging': State(_save_logging, _restore_logging),
    'random generators': State(_save_random, _restore_random),
    'start method of processes': _setting(
        lambda: multiprocessing.get_start_method(allow_none=True),
        lambda method: multiprocessing.set_start_method(method, force=True),
    ),
    "OpenCV's threads": _setting(_opencv_threads, _set_opencv_threads),
    "MMEngine's named instances": State(_save_instances, _restore_instances),
    "MMEngine's registries": State(_save_registries, _restore_registries),
    "MMEngine's readers of checkpoints": State(_save_readers, _restore_readers),
    'default dtype': _setting(torch.get_default_dtype, torch.set_default_dtype),
    'default device': _setting(torch.get_default_device, _set_default_device),
    'number of threads': _setting(torch.get_num_threads, torch.set_num_threads),
    'grad mode': _setting(torch.is_grad_enabled, torch.set_grad_enabled),
    'anomaly detection': _setting(torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    'autocast': _setting(_autocast, _set_autocast),
    'deterministic algorithms': _setting(
        _deterministic,
        lambda saved: torch.use_deterministic_algorithms(saved[0], warn_only=saved[1]),
    ),
    "flags of torch's libraries": _attributes(
        (torch.backends.cudnn, 'enabled'),
        (torch.backends.cudnn, 'benchmark'),
        (torch.backends.cudnn, 'deterministic'),
        (torch.backends.cudnn, 'allow_tf32'),
        (torch.backends.cuda.matmul, 'allow_tf32'),
        (torch.backends.cuda.matmul, 'allow_fp16_reduced_precision_reduction'),
        (torch.backends.cuda.matmul, 'allow_bf16_reduced_precision_reduction'),
        (torch.backends.mkldnn, 'enabled'),
    ),
    # After the flags, so restored before them: it sets two of them.
    'precision of products': State(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    ),
    'what pickles may hold': State(torch.serialization.get_safe_globals, _restore_safe_globals),
    'compiled graphs': State(lambda: None, _forget_compiled_graphs),
    "mmlk's modules and their tables": State(_save_mmlk, _restore_mmlk),
}
