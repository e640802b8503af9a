"""The documents and the code that they print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
FENCE = re.compile(r'^(```+)(.*)\n((?:.*\n)*?)\1$', re.M)
FILE = re.compile(r'# (\S+\.py)\n')


class Block(NamedTuple):
    """A fenced block: page, line of its fence, language, text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str:
        """Name of the file that the first line gives the block, '' if none."""
        match = FILE.match(self.text)
        return match[1] if match else ''


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    text = page.read_text(encoding='utf-8')
    return [
        Block(name_of(page), text.count('\n', 0, match.start()) + 1, match[2].strip(), match[3])
        for match in FENCE.finditer(text)
    ]


BLOCKS = {name_of(page): blocks(page) for page in PAGES}
