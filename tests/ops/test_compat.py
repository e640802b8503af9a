"""Stand-ins for names that torch and Python do not promise."""

import os

import pytest

from mmlk.ops import compat


@pytest.mark.parametrize('private', [True, False], ids=['dict of CPython', 'public way'])
@pytest.mark.parametrize('value', [None, '', 'reference', 'größer'])
def test_environment_variables_are_read_as_they_are_now(value, private, monkeypatch):
    if not private:
        monkeypatch.setattr(compat, '_IS_POSIX', False)
    monkeypatch.setenv('MMLK_TEST_VARIABLE', 'before')
    assert compat.environment('MMLK_TEST_VARIABLE') == 'before'
    if value is None:
        monkeypatch.delenv('MMLK_TEST_VARIABLE')
    else:
        monkeypatch.setenv('MMLK_TEST_VARIABLE', value)
    assert compat.environment('MMLK_TEST_VARIABLE') == os.environ.get('MMLK_TEST_VARIABLE') == value
