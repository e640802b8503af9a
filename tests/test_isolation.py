"""No test sees what another did: every kind of global state comes back, whoever changed it."""

import logging
import multiprocessing
import os
import random
import subprocess
import sys
from pathlib import Path

import cv2
import mmengine.hooks  # noqa: F401  (registers hooks)
import numpy as np
import pytest
import torch
from mmengine.registry import HOOKS, MODELS, DefaultScope, init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader

from mmlk.ops import dispatch
from tests.isolation import STATES, isolated

ROOT = Path(__file__).parents[1]


def draw():
    """The next number of every generator, which advances them all."""
    return random.random(), np.random.rand(), torch.rand(()).item()


def register_model():
    @MODELS.register_module()
    class OfThisTest:
        pass


def replace_backends():
    dispatch._BACKENDS['depthwise_conv2d'] = ()


def rename_environment():
    dispatch.ENVIRONMENT = 'ANOTHER_NAME'


# kind -> what a test might do, and what another would then see
CHANGES = {
    'environment variables': [
        (lambda: os.environ.update(MMLK_BACKEND='cpu'), lambda: os.environ.get('MMLK_BACKEND')),
        (lambda: os.environ.pop('PATH'), lambda: os.environ.get('PATH')),
    ],
    'working directory': [(lambda: os.chdir('/'), os.getcwd)],
    'sys.path and sys.argv': [
        (lambda: sys.path.insert(0, '/nowhere'), lambda: list(sys.path)),
        (lambda: sys.argv.append('--more'), lambda: list(sys.argv)),
    ],
    'logging': [
        (lambda: logging.getLogger('mmlk').setLevel(1), lambda: logging.getLogger('mmlk').level),
        (lambda: logging.disable(50), lambda: logging.root.manager.disable),
        (
            lambda: logging.root.addHandler(logging.NullHandler()),
            lambda: list(logging.root.handlers),
        ),
    ],
    'random generators': [],  # no look without a change: see below
    'start method of processes': [
        (
            lambda: multiprocessing.set_start_method('forkserver', force=True),
            lambda: multiprocessing.get_start_method(allow_none=True),
        )
    ],
    "OpenCV's threads": [(lambda: cv2.setNumThreads(3), cv2.getNumThreads)],
    "MMEngine's named instances": [
        (lambda: init_default_scope('mmdet'), DefaultScope.get_current_instance)
    ],
    "MMEngine's registries": [
        (register_model, lambda: 'OfThisTest' in MODELS.module_dict),
        (lambda: HOOKS.module_dict.pop('EMAHook'), lambda: HOOKS.module_dict.get('EMAHook')),
    ],
    "MMEngine's readers of checkpoints": [
        (
            lambda: CheckpointLoader.register_scheme('', lambda *_: {}, force=True),
            lambda: CheckpointLoader._schemes[''],
        ),
        (
            lambda: CheckpointLoader.register_scheme('x://', lambda *_: {}),
            lambda: 'x://' in CheckpointLoader._schemes,
        ),
    ],
    'default dtype': [(lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype)],
    'default device': [(lambda: torch.set_default_device('meta'), lambda: torch.empty(1).device)],
    'number of threads': [(lambda: torch.set_num_threads(3), torch.get_num_threads)],
    'grad mode': [(lambda: torch.set_grad_enabled(False), torch.is_grad_enabled)],
    'anomaly detection': [(lambda: torch.set_anomaly_enabled(True), torch.is_anomaly_enabled)],
    'autocast': [
        (
            lambda: torch.set_autocast_enabled('cpu', True),
            lambda: torch.is_autocast_enabled('cpu'),
        )
    ],
    'deterministic algorithms': [
        (
            lambda: torch.use_deterministic_algorithms(True),
            torch.are_deterministic_algorithms_enabled,
        )
    ],
    'precision of products': [
        (
            lambda: torch.set_float32_matmul_precision('medium'),
            torch.get_float32_matmul_precision,
        )
    ],
    "flags of torch's libraries": [
        (
            lambda: setattr(torch.backends.cudnn, 'benchmark', True),
            lambda: torch.backends.cudnn.benchmark,
        ),
        (
            lambda: setattr(torch.backends.mkldnn, 'enabled', False),
            lambda: torch.backends.mkldnn.enabled,
        ),
    ],
    'what pickles may hold': [
        (
            lambda: torch.serialization.add_safe_globals([Path]),
            lambda: Path in torch.serialization.get_safe_globals(),
        ),
        (
            torch.serialization.clear_safe_globals,
            lambda: len(torch.serialization.get_safe_globals()),
        ),
    ],
    'compiled graphs': [],  # see below
    "mmlk's modules and their tables": [
        (replace_backends, lambda: dispatch.backends('depthwise_conv2d')),
        (rename_environment, lambda: dispatch.ENVIRONMENT),
    ],
}


def test_every_kind_of_state_has_its_test():
    assert CHANGES.keys() == STATES.keys()


@pytest.mark.parametrize(
    ('change', 'look'),
    [
        pytest.param(*pair, id=f'{kind}-{index}')
        for kind, pairs in CHANGES.items()
        for index, pair in enumerate(pairs)
    ],
)
def test_what_a_test_changed_comes_back(change, look):
    before = look()
    with pytest.raises(ZeroDivisionError), isolated():
        change()
        assert look() != before
        raise ZeroDivisionError
    assert look() == before


def read_nothing(*_):
    return {}


def test_readers_that_an_import_registers_stay():
    with isolated():
        with isolated():  # as an import in the middle of a test
            CheckpointLoader.register_scheme('xyz://', read_nothing)
        assert CheckpointLoader._schemes['xyz://'] is read_nothing
        order = list(CheckpointLoader._schemes)
        assert order == sorted(order, reverse=True)
        del CheckpointLoader._schemes['xyz://']


def test_random_numbers_go_on_where_they_were():
    with isolated():
        first = draw()
        assert draw() != first
    assert draw() == first


def test_compiled_graphs_are_forgotten():
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    def double(x):
        return 2 * x

    for _ in range(2):
        with isolated():
            torch.compile(double, backend=backend)(torch.ones(1))
            torch.compile(double, backend=backend)(torch.ones(1))
    assert len(compilations) == 2


FIRST = """
import os, sys
import pytest
from mmengine.registry import init_default_scope

sys.path.insert(0, '/from the import of a test file')

@pytest.fixture(scope='module')
def of_the_module():
    os.environ['OF_THE_MODULE'] = '1'

def test_change(of_the_module):
    os.environ['OF_THE_TEST'] = '1'
    init_default_scope('mmdet')
"""
SECOND = """
import os, sys
from mmengine.registry import DefaultScope

def test_look():
    assert 'OF_THE_TEST' not in os.environ
    assert 'OF_THE_MODULE' not in os.environ
    assert not [path for path in sys.path if path.startswith('/from')]
    assert DefaultScope.get_current_instance() is None
"""


@pytest.mark.slow
def test_imports_fixtures_and_tests_of_one_file_leave_the_next_alone(tmp_path):
    (tmp_path / 'test_first.py').write_text(FIRST)
    (tmp_path / 'test_second.py').write_text(SECOND)
    for plugin, passed in (('tests.conftest', 2), ('pytester', 1)):
        run = subprocess.run(
            [sys.executable, '-m', 'pytest', '-q', '-p', 'no:randomly', '-p', plugin]
            + ['--rootdir', tmp_path, tmp_path],
            cwd=ROOT,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert f'{passed} passed' in run.stdout, run.stdout + run.stderr
