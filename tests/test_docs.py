"""What the documents name exists."""

import re
from fnmatch import fnmatch

import pytest

from tests.docs.pages import PAGES, ROOT, name_of

PATH = re.compile(
    r'`((?:mmlk|tools|configs|tests|docs)/[\w/.*-]+\.\w+|(?:mmlk|tools|tests)/[\w/]+/)`'
)
SOURCES = [
    path.as_posix()
    for folder in ('mmlk', 'tools', 'tests', 'configs')
    for path in (ROOT / folder).rglob('*.py')
]
FILE = re.compile(r'`([\w/]+\*?\.py)`')
LINK = re.compile(r'\]\((?!https?:)([^)#\s]+)')


@pytest.mark.parametrize('document', PAGES, ids=name_of)
def test_files_and_pages_exist(document):
    text = document.read_text()
    missing = [name for name in PATH.findall(text) if not any(ROOT.glob(name.rstrip('/')))]
    missing += [
        name
        for name in FILE.findall(text)
        if not any(fnmatch(path, f'*/{name}') for path in SOURCES)
    ]
    missing += [name for name in LINK.findall(text) if not (document.parent / name).exists()]
    assert not missing
