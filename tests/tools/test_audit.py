"""The audit of every published row: nothing differs without a reason, and every fact can differ."""

import copy
import json
from pathlib import Path

import pytest

from tests.golden_dense import no_random_values
from tests.scripts import load_tool

ROOT = Path(__file__).parents[2]
ROW = 'upernet_dcls_convnext_t_ade20k'


tool = load_tool('audit.py')


@pytest.fixture(autouse=True)
def quick():
    with no_random_values():
        yield


def verdicts(facts, names=(ROW,)):
    return {(each.row, each.fact): each.verdict for each in tool.findings(facts, list(names))}


@pytest.mark.slow
def test_no_published_row_differs_without_a_reason(tmp_path, capsys):
    status = tool.main(['--json', str(tmp_path / 'audit.json')])
    said = capsys.readouterr().out
    assert status == 0, said
    assert '29 rows' in said and ' 0 unexplained' in said
    written = json.loads((tmp_path / 'audit.json').read_text())
    published = [name for name, row in tool.dense_rows().items() if row.get('Results')]
    assert sorted({each['row'] for each in written['facts']}) == sorted(published)
    assert all(each['reason'] for each in written['facts'] if each['verdict'] == 'explained')
    zoo = json.loads((ROOT / 'docs/zoo.json').read_text())
    assert {row['name']: row['audit'] for row in zoo if row['audit']} == {
        name: {
            verdict: sum(
                (each['row'], each['verdict']) == (name, verdict) for each in written['facts']
            )
            for verdict in ('same', 'explained')
        }
        for name in published
    }


def test_every_row_names_its_source():
    facts = tool.published_facts()
    assert {row['source'] for row in facts['Rows'].values()} == set(facts['Sources'])


def test_every_fact_that_changes_is_seen():
    facts = tool.published_facts()
    row = facts['Rows'][ROW] = copy.deepcopy(facts['Rows'][ROW])
    row.update({key: 5 for key in ('parameters', 'MACs')})
    row['optimizer groups'] = dict(row['optimizer groups'], layers=['stage_wise', 0.8, 6])
    for key in set(row) - {'source', 'parameters', 'MACs', 'optimizer groups'}:
        row[key] = [*row[key], 'x'] if isinstance(row[key], list) else f'{row[key]}0'
    found = verdicts(facts)
    known = {'seed', 'precision'}  # their deviations are told from the published value by ours
    assert {fact for (_, fact), verdict in found.items() if verdict == 'unexplained'} == (
        set(row) - {'source'} - known
    )


@pytest.mark.parametrize('rule', [dict(undecayed=r'\.bias$'), dict(one_dimensional=False)])
def test_a_parameter_that_decays_against_the_rule_is_seen(rule):
    facts = tool.published_facts()
    row = facts['Rows'][ROW] = copy.deepcopy(facts['Rows'][ROW])
    row['optimizer groups'].update(rule)
    assert verdicts(facts)[ROW, 'optimizer groups'] == 'unexplained'


def test_a_reason_explains_one_value_alone_and_does_not_outlive_it():
    facts = tool.published_facts()
    seed = next(each for each in facts['Deviations'] if each['fact'] == 'seed')
    seed['ours'] = 7
    found = [each for each in tool.findings(facts, [ROW]) if each.fact == 'seed']
    assert [each.verdict for each in found] == ['unexplained', 'unexplained']
    assert found[1].reason == 'no longer deviates'
    assert 'UNEXPLAINED' in tool.table(found) and ' 2 unexplained' in tool.table(found)


def test_an_unknown_row_is_refused(capsys):
    with pytest.raises(SystemExit):
        tool.main(['fpn_recnext_m9_ade20k'])
    assert 'fpn_recnext_m9_ade20k: not one of' in capsys.readouterr().err
