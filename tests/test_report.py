"""The README's table is what the tracked results say."""

import json

import pytest

from cassl_lib import report

CHAIN = dict.fromkeys((key for key, _ in report.ROWS), 0.25) | {
    "seed": 0,
    "pseudo_edge_errors": {"left": -0.5, "top": 0.0, "right": 0.5, "bottom": 0.25},
    "environment": {"device": "2 CPU cores", "torch": "2.15.0", "date": "2026-01-01"},
}


def test_a_row_holds_seeds_mean_and_spread():
    found = [CHAIN | {"cassl_ap": 0.40}, CHAIN | {"seed": 1, "cassl_ap": 0.44}]
    row = next(line for line in report.chain_table(found).splitlines() if "Objects (P,A), box AP" in line)
    # mean (40 + 44) / 2 = 42, spread sqrt((2^2 + 2^2) / (2 - 1)) = 2.828
    assert row.split("|")[2:6] == [" 40.0 ", " 44.0 ", " 42.0 ", " 2.8 "]


def test_a_number_that_is_missing_has_no_row():
    found = [CHAIN | {"cassl_mask_ap": None}, CHAIN | {"seed": 1}]
    assert "CA-SSL, mask AP" not in report.chain_table(found)


@pytest.mark.parametrize("name", report.GENERATED)
def test_the_readme_shows_the_tracked_results(name):
    begin, end = report.markers(name)
    shown = report.README.read_text().partition(begin)[2].partition(end)[0].strip()
    assert shown == report.GENERATED[name](), "the README is stale: run python -m cassl_lib report"


def test_one_seed_is_no_table(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.section() == report.speed() == "Nothing has been recorded yet."
    with pytest.raises(KeyError):
        report.chain_table([{"seed": 0}])


def warmups(seed, **entities):
    plain = dict.fromkeys((key for key, _, _ in report.WARMUP_ROWS), 0.25)
    place = {"device": "2 CPU cores", "torch": "2.15.0", "date": "2026-01-01"}
    return {"seed": seed, "objects": plain, "entities": plain | entities, "environment": place}


def test_warm_ups_are_compared_in_pairs(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.warmup_section() == "Nothing has been recorded yet."
    for each in (warmups(0, pq=0.30, box_ap=None), warmups(1, pq=0.34)):
        (tmp_path / f"warmups_demo_tiny_seed{each['seed']}.json").write_text(json.dumps(each))
    lines = [line for line in report.warmup_section().splitlines() if line.startswith("|")]
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines}
    pq = [cell.strip() for cell in rows["finetuned on the panoptic annotation, PQ"]]
    # mean (30 + 34) / 2, spread of two 4 apart 2.83; differences 5 and 9; the paper's 42.5 and 43.7
    assert pq == ["25.0 ± 0.0", "32.0 ± 2.8", "+7.0 ± 2.8", "42.5", "43.7"]
    assert [cell.strip() for cell in rows["finetuned on instances, box AP"]] == ["25.0 ± 0.0", "", "", "48.1", "48.2"]
