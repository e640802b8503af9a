"""What tools write for the documents: the zoo, the figures; and the citations."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
import yaml

import mmlk
from mmlk.checkpoints import zoo
from mmlk.cli.published import published_facts
from tests.docs.pages import BLOCKS, ROOT
from tests.scripts import load_tool

update_zoo, draw = load_tool('update_zoo.py'), load_tool('draw_figures.py')
ROWS = json.loads((ROOT / 'docs/zoo.json').read_text())
PUBLISHED = published_facts()
FIGURES = ROOT / 'docs/figures'


def texts(path):
    return {
        ''.join(each.itertext()).strip()
        for each in ElementTree.parse(path).iter('{http://www.w3.org/2000/svg}text')
    }


def test_the_zoo_is_up_to_date(capsys):
    update_zoo.main(['--check'])


def test_a_zoo_that_is_out_of_date_is_seen(monkeypatch):
    monkeypatch.setattr(update_zoo, 'NOT_MEASURED', 'measured')
    with pytest.raises(SystemExit, match='docs/zoo.md is out of date'):
        update_zoo.main(['--check'])


def test_every_config_is_a_row_and_every_row_a_config():
    configs = {f'configs/{path.name}' for path in (ROOT / 'configs').glob('*.py')}
    assert {row['config'] for row in ROWS} == configs and len(ROWS) == len(configs)


def test_rows_say_what_the_metafiles_say():
    by_name = {row['name']: row for row in ROWS}
    row = by_name['upernet_slak_t_ade20k']
    assert (row['task'], row['family'], row['size']) == ('segmentation', 'SLaK', 't')
    assert [each['metrics'] for each in row['results']] == [{'mIoU': 47.6}]
    assert row['weights'] == [
        dict(
            name='mmlk://upernet_slak_tiny',
            holds='whole network',
            keys="authors'",
            licence='MIT',
        )
    ]
    assert row['audit'] == dict(same=10, explained=3) and row['log'] is None
    curves = {
        name
        for path in (ROOT / 'configs/metafiles').glob('*_curves.json')
        for name in json.loads(path.read_text())['runs']
    }
    assert {row['name'] for row in ROWS if row['log']} == curves
    assert all('github.com/suous/RecNeXt' in row['log'] for row in ROWS if row['log'])
    sizes = {(row['family'], row['size']) for row in ROWS}
    assert {('SLaK', 't_31'), ('RecNeXt', 'b_share_channel'), ('InceptionNeXt', 'b_384')} <= sizes
    assert {row['task'] for row in ROWS} == {'segmentation', 'detection', 'classification'}
    keys = {each['keys'] for each in by_name['inceptionnext_t_in1k']['weights']}
    assert keys == {"authors'", "timm's"}
    for row in ROWS:
        whole = row['task'] == 'classification' or row['name'] in PUBLISHED['Checkpoints']
        assert {each['holds'] for each in row['weights']} <= {
            'whole network' if whole else 'backbone'
        }
    backbone = by_name['fpn_slak_t_ade20k']['weights']
    assert [(each['name'], each['holds']) for each in backbone] == [
        ('mmlk://slak_tiny', 'backbone')
    ]


def test_weights_of_rows_are_files_of_the_zoo():
    for row in ROWS:
        for file in row['weights']:
            entry = zoo.find(file['name'].removeprefix(zoo.SCHEME))
            assert entry.licence == file['licence']
            assert entry.family == update_zoo.FAMILIES[row['family']]


def test_speeds_of_rows_are_those_of_the_benchmarks():
    page = (ROOT / 'docs/benchmarks.md').read_text()
    measured = {row['name']: row['cpu_images_per_second'] for row in ROWS}
    for classifier, row in (
        ('InceptionNeXt-T', 'inceptionnext_t_in1k'),
        ('DCLS-ConvNeXt-T', 'dcls_convnext_t_in1k'),
        ('RecNeXt-M3', 'recnext_m3_in1k'),
        ('RecNeXt-M3', 'recnext_m3_without_distill_in1k'),
    ):
        line = rf'\| {classifier} \| inference, folded \| [\d.]+ \| ([\d.]+) \|'
        assert measured[row] == pytest.approx(float(re.search(line, page)[1]), abs=0.006)
    assert {name.split('_without')[0] for name, value in measured.items() if value} == {
        'inceptionnext_t_in1k',
        'slak_t_in1k',
        'slak_t_120e_in1k',
        'dcls_convnext_t_in1k',
        'recnext_m3_in1k',
        'recnext_m3',
        'recnext_a3_in1k',
        'recnext_a3',
    }


@pytest.mark.parametrize('name', draw.FIGURES)
def test_figures_are_what_their_tool_draws(name, tmp_path):
    """Fonts and strokes are matplotlib's; what is written in a figure is compared."""
    committed = FIGURES / f'{name}.svg'
    assert texts(committed) == texts(draw.write(name, tmp_path))
    assert committed.stat().st_size < 100_000


def test_plots_show_the_measured_values():
    shown = texts(FIGURES / 'speed.svg')
    for name, gains in draw.network_gains().items():
        assert name in shown and {f'{gain:.2f}x' for gain in gains} <= shown
    shown = texts(FIGURES / 'operators.svg')
    assert all(f'{gain:.2f}x' in shown for gain in draw.operator_gains().values())


def test_pictures_are_small():
    for path in (ROOT / 'docs').rglob('*.png'):
        assert path.stat().st_size < 200_000, path


def test_readme_counts_and_measures_as_the_zoo_and_the_benchmarks_do():
    readme = (ROOT / 'README.md').read_text()
    published = [row for row in ROWS if row['audit']]
    assert f'**{len(published)} published rows**' in readme
    assert f'**{len(zoo.ENTRIES)} published files**' in readme and f'{len(ROWS)} configs' in readme
    train, infer = zip(*draw.network_gains().values())
    assert f'**{min(train):.2f} to {max(train):.1f} times** faster training' in readme
    assert f'**{min(infer):.1f} to {max(infer):.1f} times** faster inference' in readme


def test_readme_is_short():
    assert (ROOT / 'README.md').read_text().count('\n') < 120


def test_citations_are_those_of_the_papers():
    papers = {
        each['Paper']['URL']: each['Paper']['Title']
        for path in (ROOT / 'configs/metafiles').glob('*.yml')
        for each in yaml.safe_load(path.read_text()).get('Collections', ())
    }
    cff = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert {each['url']: each['title'] for each in cff['references']} == papers
    assert cff['cff-version'] == '1.2.0' and cff['authors'] and cff['message'] and cff['title']
    assert cff['version'] == mmlk.__version__
    entries = [each.text for each in BLOCKS['docs/citation.md'] if each.language == 'bibtex']
    found = {}
    for entry in entries:
        assert re.match(r'@\w+\{\w+,\n', entry) and entry.count('{') == entry.count('}')
        fields = dict(re.findall(r'^  (\w+) += \{(.*?)\},?$', entry, re.M | re.S))
        assert fields.keys() >= {'title', 'author', 'year', 'url'}
        found[fields['url']] = re.sub('[{}]', '', fields['title']).lower()
        families = [name.split(',')[0].strip() for name in re.split(r'\s+and\s+', fields['author'])]
        (reference,) = (each for each in cff['references'] if each['url'] == fields['url'])
        assert len(families) == len(reference['authors'])
    assert found == {url: title.lower() for url, title in papers.items()}
