"""The offline scan reports every broken file of the data sets that a config names."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('mmengine')

_PATH = Path(__file__).parents[2] / 'tools' / 'check_dataset.py'
_SPEC = importlib.util.spec_from_file_location('check_dataset', _PATH)
tool = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tool)


@pytest.fixture
def arguments(spoilt, tmp_path, segmentation_config):
    """Command line for a config of the spoilt set."""
    config = tmp_path / 'config.py'
    config.write_text(
        '\n'.join(f'{key} = {value!r}' for key, value in segmentation_config('elsewhere').items())
        + "\ndata_root = 'elsewhere'\n"
    )
    return [str(config), '--cfg-options', f'data_root={spoilt}']


def test_a_whole_set_has_no_problem(arguments, capsys):
    assert tool.main(arguments) == 0
    assert capsys.readouterr().out.endswith('0 problem(s)\n')


def test_all_problems_are_reported_by_file(arguments, spoilt, capsys):
    image = spoilt / 'images/training/ADE_train_00000002.jpg'
    image.write_bytes(image.read_bytes()[:-200])
    Image.fromarray(np.full((9, 9), 151, np.uint8)).save(
        spoilt / 'annotations/validation/ADE_val_00000003.png'
    )
    assert tool.main(arguments) == 1
    out = capsys.readouterr().out
    assert 'ADE_train_00000002.jpg: ' in out
    assert 'ADE_val_00000003.png: holds the label value 151' in out
    assert out.endswith('2 problem(s)\n')


def test_a_missing_folder_is_answered_like_in_training(arguments, capsys):
    assert tool.main([arguments[0]]) == 1
    assert 'no folder elsewhere' in capsys.readouterr().err
