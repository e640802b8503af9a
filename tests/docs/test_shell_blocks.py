"""Shell blocks of the documents: every command is read by its own parser, and the quick ones are run."""

import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys

import pytest

import mmlk
from mmlk.checkpoints import zoo
from mmlk.cli import program
from mmlk.cli.config import load_config
from mmlk.configs import config_root
from tests.docs.conftest import PUBLISH, Parsed
from tests.docs.pages import BLOCKS, ROOT

LANGUAGES = {'python', 'sh', 'text', 'bibtex'}
"""text is output or a message; directives of the site, in braces, are checked by its build."""
RUN = [
    'mmlk doctor',
    'mmlk predict my_config.py photo.jpg --checkpoint work_dirs/my_config/last_checkpoint',
    "mmlk predict model-0123abcd.pth 'photos/**/*.png' --batch-size 8 --out found",
    'mmlk predict recnext_m3_in1k photos/',
]
"""Commands that are run as they are printed, after those of conftest.py."""
OTHERS = {
    'cd': 'of the shell',
    'export': 'of the shell',
    'eval "$(register-python-argcomplete mmlk)"': "argcomplete's, tests/commands completes words",
    'git clone REPOSITORY mmlk': 'the address of the repository stands there',
    'trtexec': 'of TensorRT, which needs a GPU',
    'python -m mmlk.run path/to/mmdetection/tools/train.py my_config.py': 'a script of another project',
}
"""Beginnings of commands that no parser of this package reads, and why."""


def commands(text):
    """Single commands of a shell block, without comments and line breaks."""
    for line in re.sub(r'\\\n\s*', ' ', text).splitlines():
        line = re.sub(r'\s+#.*', '', line) if not line.startswith('#') else ''
        yield from filter(None, map(str.strip, line.split(' && ')))


COMMANDS = [
    (f'{page}:{block.line}', command)
    for page, found in BLOCKS.items()
    for block in found
    if block.language == 'sh'
    for command in commands(block.text)
]
PROJECT_FILES = {block.file for found in BLOCKS.values() for block in found if block.file}


def check(command, monkeypatch, tmp_path):
    """Let the program that a command starts read its command line; raises where it does not fit."""
    if any(command.startswith(each) for each in OTHERS):
        return
    words = shlex.split(command)
    while re.fullmatch(r'[A-Z_]+=\S*', words[0]):
        words.pop(0)
    for word in words:
        check_names(word)
    if words[0] == 'mmlk':
        parse(lambda: program.main(words[1:]))
    elif words[:2] == ['python', '-m']:
        monkeypatch.setattr(sys, 'argv', words[2:])
        parse(lambda: runpy.run_module(words[2], run_name='__main__'))
    elif words[0] == 'python' and words[1] in PROJECT_FILES:
        pass  # tests/data runs it
    elif words[0] == 'python':
        run_script(words[1:], monkeypatch)
    elif words[0] == 'sh':
        run_script(launched(words, tmp_path), monkeypatch)
    elif words[0] == 'make':
        subprocess.run(['make', '-n', *words[1:]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    elif words[:2] == ['pip', 'install']:
        check_requirements(words[2:])
    else:
        raise ValueError(f'{command}: neither a command of this package nor one of {list(OTHERS)}')


def check_names(word):
    """Configs, tools and weights that a word names exist."""
    if re.match('(configs|tools|docs)/', word):
        assert (ROOT / word).exists(), word
    if word.startswith('mmlk::'):
        mmlk.config_path(word.removeprefix('mmlk::'))
    if word.startswith(zoo.SCHEME):
        zoo.find(word.removeprefix(zoo.SCHEME))
    if re.fullmatch('(upernet|fpn|mask_rcnn|cascade_mask_rcnn)_[a-z0-9_]+|[a-z0-9_]+_in1k', word):
        mmlk.config_path(word)


def parse(start):
    with pytest.raises(Parsed) as caught:
        start()
    namespace = caught.value.namespace
    config = getattr(namespace, 'config', None)
    if isinstance(config, str) and (config.startswith('mmlk::') or (ROOT / config).is_file()):
        load_config(config, getattr(namespace, 'cfg_options', None))


def run_script(words, monkeypatch):
    script = ROOT / words[0]
    monkeypatch.setattr(sys, 'argv', [str(script), *words[1:]])
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.chdir(ROOT)
    parse(lambda: runpy.run_path(str(script), run_name='__main__'))


def launched(words, tmp_path):
    """The script and its options that a launcher starts; the starters of processes print them."""
    for name in ('echo_python', 'srun'):
        (tmp_path / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (tmp_path / name).chmod(0o755)
    environment = dict(os.environ, PYTHON='echo_python', PATH=f'{tmp_path}:{os.environ["PATH"]}')
    printed = subprocess.run(
        words, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    (at,) = (index for index, word in enumerate(printed) if word.endswith(('train.py', 'test.py')))
    return printed[at:]


def check_requirements(words):
    text = (ROOT / 'setup.py').read_text()
    extras = re.search(r'extras_require=dict\((.*?)\)', text, re.S)[1]
    for word in words:
        for extra in re.findall(r'mmlk\[(\w+)\]', word):
            assert f'{extra}=' in extras, word
    assert any(re.match(r'mmlk|DCLS==', word) for word in words), words


def test_every_block_is_of_a_known_language():
    unknown = [
        f'{block.page}:{block.line}: {block.language!r}'
        for found in BLOCKS.values()
        for block in found
        if block.language not in LANGUAGES and not re.match(r'\{[\w-]+\}', block.language)
    ]
    assert not unknown


@pytest.mark.parametrize('line, command', COMMANDS, ids=[f'{a}-{b[:40]}' for a, b in COMMANDS])
def test_commands_are_read_by_their_own_parser(line, command, only_parse, monkeypatch, tmp_path):
    check(command, monkeypatch, tmp_path)


@pytest.mark.parametrize(
    'command',
    [
        'mmlk predict recnext_m3_in1k photos/ --checkpoints x.pth',
        'mmlk predicts recnext_m3_in1k photos/',
        'mmlk train mmlk::upernet_slak_x_ade20k',
        'mmlk train mmlk::upernet_slak_t_ade20k --cfg-options train_dataloader.batchsize=2',
        'python tools/test.py configs/recnext_m3_in1k.py mmlk://recnext_m9_distill_300e',
        'python tools/reproduce.py fpn_recnext_m3_ade20k --publishd',
        'python tools/bench/benchmark_ops.py --threadz 1',
        'sh tools/dist_train.sh configs/upernet_slak_t_ade20k.py 8 --accumulated 2',
        'python -m tests.ops.fuzz --case 20000 --sed 1',
        "pip install 'mmlk[onnx]'",
        'curl -O x',
    ],
)
def test_a_wrong_command_is_seen(command, only_parse, monkeypatch, tmp_path):
    with pytest.raises((SystemExit, ValueError, AssertionError)):
        check(command, monkeypatch, tmp_path)


def test_modules_that_run_other_scripts_exist():
    assert importlib.util.find_spec('mmlk.run') and config_root().is_dir()


@pytest.mark.slow
def test_quick_commands_run_as_they_are_printed(reader, capsys):
    printed = [command for _, command in COMMANDS]
    assert {PUBLISH, *RUN} <= set(printed)
    for command in RUN:
        assert program.main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert len(list(reader.glob('found/labels/**/*.png'))) == 2
