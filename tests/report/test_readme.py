"""The README's table is what the tracked results say."""

import json

import pytest

from cassl_lib.report import readme

CHAIN = dict.fromkeys((key for key, _ in readme.ROWS), 0.25) | {
    "seed": 0,
    "pseudo_edge_errors": {"left": -0.5, "top": 0.0, "right": 0.5, "bottom": 0.25},
    "environment": {"device": "2 CPU cores", "torch": "2.15.0", "date": "2026-01-01"},
}


def test_a_row_holds_seeds_mean_and_spread():
    found = [CHAIN | {"cassl_ap": 0.40}, CHAIN | {"seed": 1, "cassl_ap": 0.44}]
    row = next(line for line in readme.chain_table(found).splitlines() if "Objects (P,A), box AP" in line)
    # mean (40 + 44) / 2 = 42, spread sqrt((2^2 + 2^2) / (2 - 1)) = 2.828
    assert row.split("|")[2:6] == [" 40.0 ", " 44.0 ", " 42.0 ", " 2.8 "]


def test_a_number_that_is_missing_has_no_row():
    found = [CHAIN | {"cassl_mask_ap": None}, CHAIN | {"seed": 1}]
    assert "CA-SSL, mask AP" not in readme.chain_table(found)


@pytest.mark.parametrize("name", readme.GENERATED)
def test_the_readme_shows_the_tracked_results(name):
    begin, end = readme.markers(name)
    shown = readme.README.read_text().partition(begin)[2].partition(end)[0].strip()
    assert shown == readme.GENERATED[name](), "the README is stale: run python -m cassl_lib report"


def test_checks_of_a_plan_stand_beside_each_other(monkeypatch, tmp_path):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert readme.plan() == readme.NOTHING
    for split, real in (("base", 0), ("tiny", 160.0)):
        rows = [{"name": "labeler, seconds", "planned": 152.0, "real": real}]
        place = {"device": "2 CPU cores", "date": "2026-01-01"}
        content = {"profile": "demo", "split": split, "rows": rows, "environment": place}
        (tmp_path / f"plan_check_{split}.json").write_text(json.dumps(content))
    *_, head, _, row = readme.plan().splitlines()
    assert head == "| | split tiny, planned | real | off | split base, planned | real | off |"
    assert row == "| labeler, seconds | 152 | 160 | -5% | 152 | 0 |  |"


def test_one_seed_is_no_table(monkeypatch, tmp_path):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert readme.section() == readme.speed() == "Nothing has been recorded yet."
    with pytest.raises(KeyError):
        readme.chain_table([{"seed": 0}])
