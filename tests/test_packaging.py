"""Install as a user does, from a wheel and editable, and inherit a config from another project."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UPSTREAM = ROOT / '.venv' / 'upstream'
CONFIG = 'upernet_inceptionnext_b_ade20k.py'
PROGRAM = """
import mmlk
from mmengine.config import Config
import mmengine
config = Config.fromfile('downstream.py')
assert config.model.backbone.arch == 'base', config.model.backbone
assert config.model.decode_head.num_classes == 7
assert '_scope_' not in config.model
assert Config.fromfile('expression.py').to_dict() == config.to_dict()
from mmlk.registry import MODELS
import torch
with torch.device('meta'):
    MODELS.build(config.model.backbone)
print(mmlk.__file__, mmengine.__version__)
"""


def run(arguments, cwd, **environment):
    """Run in ``cwd`` with the installed packages, but without the checkout on the path."""
    process = subprocess.run(
        [str(a) for a in arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': '', **environment},
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def downstream(folder):
    override = 'model = dict(decode_head=dict(num_classes=7))\n'
    (folder / 'downstream.py').write_text(f"_base_ = 'mmlk::{CONFIG}'\n{override}")
    (folder / 'expression.py').write_text(
        f"_base_ = [__import__('mmlk').config_path('{CONFIG}')]\n{override}"
    )
    return folder


def install(target, *arguments):
    run(
        [
            sys.executable,
            '-m',
            'pip',
            'install',
            '-q',
            '--no-deps',
            '--no-build-isolation',
            '--target',
            target,
            *arguments,
        ],
        target,
    )


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    copy = tmp_path_factory.mktemp('source') / 'mmlk'
    tracked = subprocess.run(
        ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, tracked.split('\0')):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    run(
        [
            sys.executable,
            '-m',
            'pip',
            'wheel',
            '-q',
            '--no-deps',
            '--no-build-isolation',
            '-w',
            folder,
            copy,
        ],
        folder,
    )
    return next(folder.glob('mmlk-*.whl'))


@pytest.mark.slow
def test_wheel_holds_configs_and_tools_and_is_pure_python(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.endswith('-py3-none-any.whl')
    for path in (ROOT / 'configs').rglob('*.py'):
        assert f'mmlk/.mim/configs/{path.relative_to(ROOT / "configs").as_posix()}' in names
    assert {
        'mmlk/py.typed',
        'mmlk/serve/page.html',
        'mmlk/.mim/tools/train.py',
        'mmlk/.mim/tools/dist_train.sh',
        'mmlk/.mim/model-index.yml',
    } <= set(names)
    assert not any(name.startswith(('tests/', 'tools/', 'configs/')) for name in names)
    metadata = next(name for name in names if name.endswith('METADATA'))
    requirements = [
        line
        for line in zipfile.ZipFile(wheel).read(metadata).decode().splitlines()
        if line.startswith('Requires-Dist') and 'extra ==' not in line
    ]
    assert not any('mm' in line for line in requirements), 'would overwrite one of the two stacks'


@pytest.mark.slow
def test_inheritance_from_a_wheel(wheel, tmp_path):
    site = tmp_path / 'site'
    site.mkdir()
    install(site, wheel)
    printed = run([sys.executable, '-c', PROGRAM], downstream(tmp_path), PYTHONPATH=str(site))
    assert printed.startswith(str(site))


@pytest.mark.slow
def test_command_from_a_wheel(wheel, tmp_path):
    """The command is there, finds its configs inside the package, and names no other place."""
    site = tmp_path / 'site'
    site.mkdir()
    install(site, wheel)
    script = (site / 'bin' / 'mmlk').read_text()
    assert 'mmlk.cli.program' in script and 'main' in script
    start = [sys.executable, '-m', 'mmlk']
    listed = run([*start, 'models', '*slak*'], tmp_path, PYTHONPATH=str(site))
    assert 'upernet_slak_t_ade20k' in listed
    out = tmp_path / 'data'
    made = run(
        [*start, 'generate-data', out, '--train', '1', '--val', '1', '--size', '100x120'],
        tmp_path,
        PYTHONPATH=str(site),
    )
    assert made.startswith(f'{out}: 1 training and 1 validation pictures')
    for name in ('train', 'predict', 'export', 'publish', 'doctor'):
        text = run([*start, name, '--help'], tmp_path, PYTHONPATH=str(site))
        assert text.startswith(f'usage: mmlk {name}')
        assert 'tools/' not in text and str(ROOT) not in text


@pytest.mark.slow
def test_inheritance_from_a_checkout(tmp_path):
    printed = run([sys.executable, '-c', PROGRAM], downstream(tmp_path), PYTHONPATH=str(ROOT))
    assert printed.startswith(str(ROOT))


@pytest.mark.slow
@pytest.mark.skipif(
    not UPSTREAM.is_dir(), reason='set-up has put no upstream mmengine beside the venv'
)
def test_inheritance_on_upstream_mmengine(wheel, tmp_path):
    site = tmp_path / 'site'
    site.mkdir()
    install(site, wheel)
    printed = run(
        [sys.executable, '-c', PROGRAM],
        downstream(tmp_path),
        PYTHONPATH=f'{site}{os.pathsep}{UPSTREAM}',
    )
    assert printed.split()[-1] == '0.10.7'


def test_the_upstream_extra_admits_no_mmcv_that_mmseg_and_mmdet_refuse():
    metadata = pytest.importorskip('packaging.requirements')
    text = (ROOT / 'setup.py').read_text()
    block = text[text.index('OPENMMLAB = [') : text.index(']', text.index('OPENMMLAB = ['))]
    wanted = {r.name: r for r in map(metadata.Requirement, re.findall(r"'(.+)'", block))}
    assert '2.1.0' in wanted['mmcv-lite'].specifier
    assert '2.2.0' not in wanted['mmcv-lite'].specifier, 'mmseg 1.2.2 and mmdet 3.3.0 refuse it'
    assert '1.2.2' in wanted['mmsegmentation'].specifier and '3.3.0' in wanted['mmdet'].specifier
