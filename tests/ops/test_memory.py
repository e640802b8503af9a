"""The C library's settings are changed once, and never against the user's own."""

import pytest

from mmlk.ops import memory as allocation


@pytest.fixture
def calls(monkeypatch):
    made = []

    class Library:
        def __init__(self, name):
            pass

        def mallopt(self, parameter, value):
            made.append((parameter, value))

    monkeypatch.setattr(allocation.ctypes, 'CDLL', Library)
    monkeypatch.setattr(allocation.platform, 'libc_ver', lambda: ('glibc', '2.36'))
    for name in ('MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_', 'GLIBC_TUNABLES'):
        monkeypatch.delenv(name, raising=False)
    allocation.keep_freed_memory.cache_clear()
    yield made
    allocation.keep_freed_memory.cache_clear()


def test_thresholds_are_set_once(calls):
    allocation.keep_freed_memory()
    allocation.keep_freed_memory()
    assert calls == [(-1, 1 << 30), (-3, 1 << 25)]


@pytest.mark.parametrize('name', ['MALLOC_TRIM_THRESHOLD_', 'GLIBC_TUNABLES'])
def test_settings_of_the_user_stay(calls, name, monkeypatch):
    monkeypatch.setenv(name, '1')
    allocation.keep_freed_memory()
    assert calls == []


def test_other_c_libraries_are_left_alone(calls, monkeypatch):
    monkeypatch.setattr(allocation.platform, 'libc_ver', lambda: ('', ''))
    allocation.keep_freed_memory()
    assert calls == []
