"""The program: its commands, its exit statuses, and one definition of each flag."""

import argparse
import json
import os
import subprocess
import sys
from importlib import import_module

import pytest
import yaml

import mmlk
from mmlk.cli import program
from mmlk.commands import models
from tests.tools.workbench import ROOT

# command -> its script, where there is one
SCRIPTS = {
    'train': 'train.py',
    'test': 'test.py',
    'export': 'export.py',
    'convert': 'convert_checkpoint.py',
    'check-data': 'check_dataset.py',
    'generate-data': 'generate_data.py',
    'flops': 'get_flops.py',
    'doctor': 'doctor.py',
}


def start(*words, **environment):
    return subprocess.run(
        [sys.executable, '-m', 'mmlk', *words],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT), **environment},
    )


@pytest.mark.parametrize('name', program.COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stop:
        program.main([name, '--help'])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f'usage: mmlk {name}')
    assert program.COMMANDS[name] in ' '.join(text.split()), 'summary and help text differ'


def test_help_lists_all_commands_and_imports_none_of_them():
    before = set(sys.modules)
    text = program.build_parser(['--help']).format_help()
    assert all(f'    {name} ' in text or f'    {name}\n' in text for name in program.COMMANDS)
    assert not {name for name in set(sys.modules) - before if name.startswith('mmlk.commands.')}


@pytest.mark.parametrize('name, script', SCRIPTS.items())
def test_script_and_command_have_the_same_flags(name, script, monkeypatch, capsys):
    """The help texts, which list every flag with its values, differ in the name alone."""
    monkeypatch.setenv('COLUMNS', '100')
    module = import_module(f'tools.{script.removesuffix(".py")}')
    monkeypatch.setattr(sys, 'argv', [script])
    helps = []
    for call in (lambda: module.main(['--help']), lambda: program.main([name, '--help'])):
        with pytest.raises(SystemExit):
            call()
        helps.append(capsys.readouterr().out)
    indented = [' '.join(text.split()) for text in helps]
    assert indented[0].replace(script, f'mmlk {name}') == indented[1]


@pytest.mark.parametrize(
    'words, status, stream, text',
    [
        (['--version'], 0, 'stdout', mmlk.__version__),
        ([], 2, 'stderr', 'COMMAND'),
        (['predcit'], 2, 'stderr', "no command 'predcit'; closest names: predict"),
        (['qqqq'], 2, 'stderr', 'invalid choice'),
        (['models', '####'], 1, 'stderr', "mmlk models: error: no name fits '####'\n"),
        (['models', 'upernet_slak_tiny'], 1, 'stderr', 'closest names: upernet_slak_t_ade20k'),
        (['flops', 'absent.py'], 1, 'stderr', 'mmlk flops: error: load_config: there is no config'),
        (['flops', 'x.py', '--shape', '1', '2', '3'], 2, 'stderr', 'one or two numbers, not 3'),
        (['train'], 2, 'stderr', 'the following arguments are required: config'),
    ],
)
def test_exit_status(words, status, stream, text):
    done = start(*words)
    assert done.returncode == status
    assert text in getattr(done, stream)


def test_a_reader_who_leaves_ends_a_command_without_words():
    command = [sys.executable, '-m', 'mmlk', 'models']
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen(command, env={**os.environ, 'PYTHONPATH': str(ROOT)}, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b''
    assert process.returncode == 1


@pytest.mark.parametrize('form', ['mmlk::{}', 'mmlk::{}.py', '{}', '{}.py'])
def test_configs_of_the_package_go_by_name(form, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = form.format('inceptionnext_a_in1k')
    assert program.main(['flops', name, '--shape', '64']) == 0
    assert f'{name} at 64 x 64\n' in capsys.readouterr().out


def test_a_file_goes_before_a_config_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'inceptionnext_a_in1k.py').write_text('1 / 0')
    with pytest.raises(SystemExit, match='inceptionnext_a_in1k.py cannot be read: ZeroDivision'):
        program.main(['flops', 'inceptionnext_a_in1k.py'])


NUMBERS = {
    ('train', 'c.py', '--accumulate'): 'whole number of at least 1',
    ('flops', 'c.py', '--shape'): 'whole number of at least 1',
    ('export', 'c.py', '--out', 'a.onnx', '--shape', '32'): 'whole number of at least 1',
    ('predict', 'c.py', 'a.png', '--batch-size'): 'whole number of at least 1',
    ('predict', 'c.py', 'a.png', '--top-k'): 'whole number of at least 1',
    ('predict', 'c.py', 'a.png', '--threshold'): 'number from 0 to 1',
}


@pytest.mark.parametrize('value', ['0', '-1', '1.5', 'nan', 'many'])
@pytest.mark.parametrize('words', NUMBERS, ids='-'.join)
def test_numbers_out_of_range_are_usage_errors(words, value, capsys):
    if value == '0' and 'number from 0' in NUMBERS[words]:
        value = '2'
    with pytest.raises(SystemExit) as stop:
        program.main([*words, value])
    assert stop.value.code == 2
    assert NUMBERS[words] in capsys.readouterr().err


def test_completion_offers_commands_flags_and_configs(tmp_path):
    def complete(line):
        out = tmp_path / 'out'
        start(
            _ARGCOMPLETE='1',
            _ARGCOMPLETE_STDOUT_FILENAME=str(out),
            _ARGCOMPLETE_IFS='\n',
            COMP_LINE=line,
            COMP_POINT=str(len(line)),
        )
        return out.read_text().split('\n')

    assert [word.strip() for word in complete('mmlk pre')] == ['predict']
    assert '--batch-size ' in complete('mmlk predict --ba')
    assert any(
        'upernet_slak_t_ade20k' in word for word in complete('mmlk train mmlk::upernet_slak')
    )


def test_table_of_models_says_what_the_metafiles_say(capsys):
    assert program.main(['models', '--json']) == 0
    listed = {row['name']: row for row in json.loads(capsys.readouterr().out)}
    assert set(listed) == {path.stem for path in (ROOT / 'configs').glob('*.py')}
    entries = yaml.safe_load((ROOT / 'configs/metafiles/slak.yml').read_text())['Models']
    entry = next(entry for entry in entries if entry['Name'] == 'upernet_slak_t_ade20k')
    assert listed[entry['Name']]['published'] == entry['Results'][0]['Metrics']
    assert listed[entry['Name']]['params (M)'] == entry['Metadata']['Parameters']


def test_columns_of_the_table_are_aligned():
    text = models.table([dict(name='a', size=None), dict(name='long', size=1.5)])
    assert text == 'name  size\na     -\nlong  1.5'


def test_published_checkpoints_are_listed(capsys):
    assert program.main(['models', '--weights', 'recnext_m3_*']) == 0
    out = capsys.readouterr().out
    assert 'recnext_m3_ade20k' in out and 'Apache-2.0' in out and 'slak' not in out


def test_networks_are_listed_with_what_they_load(capsys):
    assert program.main(['models', '--networks', '--json', 'recnext_m3*']) == 0
    rows = {row['name']: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ['recnext_m3', 'recnext_m3.base_300e_in1k']
    assert rows['recnext_m3']['weights'] == 'recnext_m3_distill_300e'
    with pytest.raises(SystemExit, match='closest names: recnext_m3, recnext'):
        program.main(['models', '--networks', 'recnext_m33'])


def test_messages_carry_the_name_that_was_typed(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'argv', ['get_flops.py'])
    with pytest.raises(SystemExit, match='^get_flops.py: error: '):
        program.run_tool('flops', [str(tmp_path / 'absent.py')])
    with pytest.raises(SystemExit, match='^mmlk flops: error: '):
        program.main(['flops', str(tmp_path / 'absent.py')])


def test_overrides_are_read_as_mmengine_reads_them():
    from mmengine.config import DictAction

    from mmlk.cli import arguments

    ours, theirs = argparse.ArgumentParser(), argparse.ArgumentParser()
    arguments.add_cfg_options(ours)
    theirs.add_argument('--cfg-options', nargs='+', action=DictAction)
    words = ['--cfg-options', 'a.b=1', 'c=[1,2]', 'd=(64,64)', 'e=x', 'f=True']
    assert vars(ours.parse_args(words)) == vars(theirs.parse_args(words))
