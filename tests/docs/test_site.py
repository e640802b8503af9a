"""The site builds without a warning, and every link in it leads somewhere."""

import json
import os
import re
import shlex
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import ROOT


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[key] for key in ('id', 'name') if found.get(key)}
        self.links += [found[key] for key in ('href', 'src') if found.get(key)]


def build(source, target, **environment):
    """What ``make docs`` does after the set-up, from ``source``."""
    told = subprocess.run(
        ['make', '-n', 'docs', f'SITE={target}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (command,) = (line for line in told.splitlines() if 'sphinx' in line)
    words = [str(source) if word == 'docs' else word for word in shlex.split(command)]
    return subprocess.run(
        words,
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT), **environment),
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp('site')
    run = build('docs', folder)
    assert run.returncode == 0, run.stderr[-3000:]
    return {path.relative_to(folder): Page(path) for path in folder.rglob('*.html')}, folder


def broken(pages, folder):
    """Links within the site that lead nowhere."""
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (
                Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            )
            if not (folder / target).is_file():
                yield f'{path}: {link}'
            elif parts.fragment and target in pages:
                if unquote(parts.fragment) not in pages[target].anchors:
                    yield f'{path}: {link}'


@pytest.mark.slow
def test_links_within_the_site_lead_somewhere(site):
    pages, folder = site
    generated = {Path('genindex.html'), Path('search.html'), Path('py-modindex.html')}
    sources = {path.relative_to(ROOT / 'docs') for path in (ROOT / 'docs').rglob('*.md')}
    assert {path for path in pages if path not in generated} == {
        path.with_suffix('.html') for path in sources
    }
    assert not list(broken(pages, folder))
    first = pages[Path('index.html')]
    first.links.append('training.html#no-such-place')
    assert list(broken(pages, folder)) == ['index.html: training.html#no-such-place']


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site):
    pages, folder = site
    for path in folder.rglob('*.html'):
        loaded = re.findall(r'<(?:script|link|img)\b[^>]*?(?:src|href)="([^"]+)"', path.read_text())
        assert not [each for each in loaded if urlsplit(each).netloc], path


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    import mmlk
    from mmlk import engine, heads, networks, ops

    pages, _ = site
    anchors = {anchor for page in pages.values() for anchor in page.anchors}
    wanted = {f'mmlk.{name}' for name in mmlk.__all__ if name != '__version__'}
    for module in (engine, heads, networks, ops):
        wanted |= {f'{module.__name__}.{name}' for name in module.__all__}
    wanted -= {'mmlk.heads.HEADS'}
    assert not (wanted | {'mmlk.export.export_model'}) - anchors


@pytest.mark.slow
def test_the_zoo_page_has_its_table_data_and_filter(site):
    pages, folder = site
    (data,) = folder.rglob('zoo.json')
    rows = json.loads(data.read_text())
    html = (folder / 'zoo.html').read_text()
    assert all(f'>{row["name"]}<' in html for row in rows)
    script = (folder / '_static/zoo.js').read_text()
    headings = re.findall(r'<th class="head"><p>(.*?)</p></th>', html)
    for name in re.findall(r"'([^']+)'", re.search(r'for \(const name of \[(.*?)\]', script)[1]):
        assert name in headings
    for name in re.findall(r"^    \['([^']+)', ", script, re.M):
        assert name in headings


@pytest.mark.slow
def test_a_broken_link_and_a_missing_reference_fail_the_build(tmp_path):
    (tmp_path / 'conf.py').write_text(
        "nitpicky = True\nextensions = ['myst_parser']\nroot_doc = 'index'\n"
    )
    (tmp_path / 'index.md').write_text(
        '# Title\n\n[a](absent.md) [b](#absent)\n\n{py:func}`mmlk.absent`\n'
    )
    run = build(tmp_path, tmp_path / 'out')
    assert run.returncode != 0
    for message in ('absent.md', "'absent'", 'mmlk.absent'):
        assert message in run.stderr
