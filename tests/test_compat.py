"""Other packages' private names: used as they are today, and missed with a remedy."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from mmlk import compat, configs


def test_importing_it_loads_no_other_package():
    program = (
        'import sys; before = set(sys.modules); import mmlk.compat; '
        'print({name.partition(".")[0] for name in set(sys.modules) - before}'
        ' - {"mmlk", *sys.stdlib_module_names})'
    )
    run = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert (run.stdout.strip(), run.stderr) == ('set()', '')


def test_config_paths_are_answered_once_however_often_asked():
    resolver = Config._get_cfg_path
    configs.install_config_resolver()
    assert Config._get_cfg_path is resolver
    expected = (configs.config_path('_base_/models/upernet.py'), None)
    assert resolver('mmlk::_base_/models/upernet.py', 'any.py') == expected
    assert resolver('other.py', '/folder/any.py') == ('/folder/other.py', None)


def test_a_config_class_without_the_resolver_stays_and_the_remedy_is_told():
    class Other:
        pass

    with pytest.warns(RuntimeWarning, match=r'no Config._get_cfg_path.*_base_ = \[__import__'):
        compat.wrap_config_resolver(Other, lambda resolve: resolve)
    assert not hasattr(Other, '_get_cfg_path')


def test_bases_of_a_config_are_found(tmp_path):
    file = tmp_path / 'child.py'
    file.write_text("_base_ = ['./one.py', 'mmlk::_base_/models/upernet.py']")
    assert compat.base_configs(Config, file) == [
        tmp_path / 'one.py',
        Path(configs.config_path('_base_/models/upernet.py')),
    ]
    file.write_text(
        'from mmengine.config import read_base\nwith read_base():\n    from .one import *'
    )
    assert compat.base_configs(Config, file) is None


def test_storages_are_told_apart_without_memory():
    x, other = torch.empty(2, 3, device='meta'), torch.empty(2, 3, device='meta')
    assert compat.storage_identity(x) == compat.storage_identity(x[1:])
    assert compat.storage_identity(x) != compat.storage_identity(other)


@pytest.mark.parametrize('resume', [False, True])
def test_a_runner_tells_whether_it_resumes(tmp_path, resume):
    runner = Runner(torch.nn.Linear(1, 1), str(tmp_path), resume=resume)
    assert compat.resumes(runner) is resume


def test_a_wrapper_tells_how_many_iterations_it_accumulates():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    assert compat.accumulated_iterations(OptimWrapper(optimizer)) == 1
    assert compat.accumulated_iterations(OptimWrapper(optimizer, accumulative_counts=4)) == 4


@pytest.mark.parametrize(
    ('function', 'name'),
    [(compat.resumes, '_resume'), (compat.accumulated_iterations, '_accumulative_counts')],
)
def test_what_is_gone_is_an_error_with_versions(function, name):
    with pytest.raises(RuntimeError, match=rf"mmengine \d.* no '{name}'; install .* 0\.10\.4 to"):
        function(SimpleNamespace())


def test_a_config_class_that_tells_no_bases_is_an_error_with_versions():
    class Other:
        pass

    with pytest.raises(RuntimeError, match=r"Other of .*mmengine .* no '_is_lazy_import'; install"):
        compat.base_configs(Other, Path('any.py'))


def test_a_head_without_its_selection_of_maps_is_named_with_the_remedy():
    head = SimpleNamespace(_transform_inputs=lambda maps: maps[1])
    assert compat.selected_maps(head, [1, 2]) == 2
    with pytest.raises(RuntimeError, match='object of onedl-mmsegmentation .*install .*--no-fold'):
        compat.selected_maps(object(), [1, 2])
