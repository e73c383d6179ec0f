"""The generated tables of README and docs, from made-up results, and their links."""

import json
import re

import pytest

from cassl_lib import paths
from cassl_lib.errors import DataError
from cassl_lib.report import blocks, chain, readme, report, tables
from cassl_lib.tables import compare, results

CHAIN = dict.fromkeys((key for key, _ in chain.CHAIN), 0.25) | {
    "profile": "demo",
    "split": "large",
    "seed": 0,
    "pseudo_threshold": 0.45,
    "baseline_steps": 4000,
    "baseline_by_steps": {"1000": 0.25, "4000": 0.3},
    "config": {"finetune": {"steps": 1000}},
    "pseudo_edge_errors": {"left": -0.5, "top": 0.0, "right": 0.5, "bottom": 0.25},
    "environment": {"device": "2 CPU cores", "torch": "2.15.0", "date": "2026-01-01"},
}


@pytest.fixture
def record(monkeypatch, tmp_path):
    """Write summaries of chains to an empty folder of results."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)

    def write(*chains):
        for each in chains:
            (tmp_path / f"chain_demo_large_seed{each['seed']}.json").write_text(json.dumps(each))

    return write


def row_of(section, name):
    return next(line for line in blocks.markdown(section).splitlines() if name in line).split("|")


def test_a_row_holds_seeds_mean_and_std(record):
    record(CHAIN | {"cassl_ap": 0.40}, CHAIN | {"seed": 1, "cassl_ap": 0.44})
    # mean (40 + 44) / 2 = 42, std sqrt((2^2 + 2^2) / (2 - 1)) = 2.828
    assert row_of(chain.seeds(), "CA-SSL, Objects (P,A), box AP")[2:6] == [" 40.0 ", " 44.0 ", " 42.0 ", " 2.8 "]
    assert row_of(chain.seeds(), "left edge")[2:6] == [" -0.50 ", " -0.50 ", " -0.50 ", " 0.00 "]


def test_the_baseline_is_shown_over_its_length(record):
    """By hand: 1,000 steps stand for 36 epochs, 4,000 for 144."""
    record(CHAIN, CHAIN | {"seed": 1, "baseline_steps": 1000, "baseline_by_steps": {"1000": 0.27, "4000": 0.26}})
    lines = blocks.markdown(chain.seeds()).splitlines()
    assert lines[-2:] == [
        "| baseline | 1,000 | 36 | 26.0 ± 1.4 | 1 of 2 seeds |",
        "|  | 4,000 | 144 | 28.0 ± 2.8 | 1 of 2 seeds |",
    ]
    assert row_of(chain.seeds(), "score threshold")[2:6] == [" 0.45 ", " 0.45 ", " 0.45 ", " 0.00 "]


def test_the_results_table_has_three_rows_with_mean_and_std_over_the_papers_numbers(record):
    record(CHAIN | {"cassl_ap": 0.40}, CHAIN | {"seed": 1, "cassl_ap": 0.44})
    lines = blocks.markdown(chain.summary()).splitlines()
    assert lines[0].startswith("Profile demo, pool large, seeds 0 and 1, on 2 CPU cores, torch 2.15.0, 2026-01-01.")
    assert len(lines) == 7 and lines[2] == "| warm-up | box AP | mask AP |"
    assert lines[4].endswith("| 25.0 ± 0.0<br><sub>46.8</sub> | 25.0 ± 0.0<br><sub>43.0</sub> |")
    assert lines[5].endswith("| 25.0 ± 0.0<br><sub>46.9</sub> | 25.0 ± 0.0<br><sub>—</sub> |")
    assert lines[6].endswith("| 42.0 ± 2.8<br><sub>48.1</sub> | 25.0 ± 0.0<br><sub>45.0</sub> |")


def test_a_missing_number_has_no_row(record):
    record(CHAIN | {"cassl_mask_ap": None}, CHAIN | {"seed": 1})
    assert "CA-SSL, Objects (P,A), mask AP" not in blocks.markdown(chain.seeds())


def test_links_of_the_table_of_tables_lead_to_files_and_headings():
    text = blocks.markdown(readme.paper_tables())
    links = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text)
    headings = {
        readme.anchor(line.lstrip("# "))
        for line in (paths.REPOSITORY / report.REPORT).read_text().splitlines()
        if line.startswith("#")
    }
    notebooks = [*(paths.REPOSITORY / "notebooks").glob("1?_table*.ipynb")]
    notebooks += (paths.REPOSITORY / "notebooks").glob("18_shift.ipynb")
    recorded = {table for profile in tables.profiles() for table in results.recorded(profile)}
    assert len(notebooks) >= 8 and len(links) == len(compare.LAYOUTS) + len(notebooks) + len(recorded)
    for file, anchor in links:
        assert (paths.REPOSITORY / file).exists(), file
        assert not anchor or anchor in headings, anchor


def test_the_table_of_tables_says_what_is_recorded(record, tmp_path):
    assert row_of(readme.paper_tables(), "Which data")[-2] == " not yet "
    for profile, seeds in (("demo", [0, 1, 2]), ("gpu", [0])):
        table = {"table": 2, "profile": profile, "seeds": seeds, "rows": {}, "runs": {}}
        (tmp_path / f"table2_{profile}.json").write_text(json.dumps(table))
    *_, file, state, _ = row_of(readme.paper_tables(), "Which data")
    assert state == " 3 seeds at demo, 1 seed at gpu " and file == " [JSON](reports/results/table2_gpu.json) "


def test_a_table_without_a_notebook_does_not_link_to_that_of_another(tmp_path, monkeypatch):
    """10 + 8 is the number of the notebook of shifted pools."""
    monkeypatch.setattr(paths, "REPOSITORY", tmp_path)
    (tmp_path / "notebooks").mkdir()
    for name in ("18_shift.ipynb", "17_table7_scale.ipynb"):
        (tmp_path / "notebooks" / name).touch()
    shown = {table: readme._notebook(table).link for table in readme.QUESTIONS}
    assert {table: link for table, link in shown.items() if link} == {
        7: "notebooks/17_table7_scale.ipynb",
        "shift": "notebooks/18_shift.ipynb",
    }


def test_the_readme_shows_a_picture_only_if_one_is_recorded(record, tmp_path):
    assert list(readme.picture()) == []
    drawn = {"images": [], "rows": {"baseline": [], "CA-SSL": []}, "scenes": None}
    gathered = {"profile": "demo", "split": "large", "seed": 0, "classes": ["cat"]}
    gathered["pictures"] = {"stages": drawn, "detections": drawn}
    (tmp_path / "pictures_demo_large_seed0.json").write_text(json.dumps(gathered))
    assert "](figures/stages.png)" in blocks.markdown(readme.picture())


def test_anchors_are_those_of_code_hosts():
    assert readme.anchor("Table 2: Warm-up training data") == "table-2-warm-up-training-data"


def test_checks_of_a_plan_stand_beside_each_other(record, tmp_path):
    assert readme.plan() == blocks.NOTHING
    for split, real in (("base", 0), ("tiny", 160.0)):
        rows = [{"name": "labeler, seconds", "planned": 152.0, "real": real}]
        place = {"device": "2 CPU cores", "date": "2026-01-01"}
        content = {"profile": "demo", "split": split, "rows": rows, "environment": place}
        (tmp_path / f"plan_check_{split}.json").write_text(json.dumps(content))
    *_, head, _, row = blocks.markdown(readme.plan()).splitlines()
    names = ("planned", "measured", "error")
    assert head == f"|  | {' | '.join(f'pool {split}<br>{name}' for split in ('tiny', 'base') for name in names)} |"
    assert row == "| labeler, seconds | 152 | 160 | -5% | 152 | 0 |  |"


def test_one_seed_is_no_table_of_seeds(record):
    assert chain.seeds() == chain.summary() == readme.speed() == readme.store() == blocks.NOTHING
    assert blocks.markdown(blocks.NOTHING) == "Nothing has been recorded yet."
    record(CHAIN)
    assert chain.seeds() == blocks.NOTHING and chain.summary() != blocks.NOTHING


def test_a_summary_without_its_numbers_raises(record):
    record({"seed": 0}, {"seed": 1})
    with pytest.raises(DataError, match=r"chain_demo_large_seed[01].json: lacks .*; restore it, or delete it"):
        chain.seeds()
