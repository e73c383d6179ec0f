"""The report is what the results say: rendered from made-up results here, compared with the tracked ones there."""

import json

import numpy as np
import pytest
from PIL import Image

from cassl_lib.report import pictures, report
from cassl_lib.report.report import csv_text

RUN = {"stage": "finetune", "steps": 10, "seconds": 90.0, "device": "2 CPU cores", "threads": "1", "torch": "2.15.0"}
RUN |= {"date": "2026-01-02", "commit": "abc1234"}


def collected(table, rows, profile="demo", seeds=(0, 1)):
    runs = {str(seed): {f"finetune-{seed}": RUN, "labeler-0": RUN} for seed in seeds}
    return {"table": table, "profile": profile, "seeds": list(seeds), "rows": rows, "runs": runs}


ROWS = {
    "nothing": {"AP": {"0": 0.40, "1": 0.42}, "AP50": {"0": None, "1": None}},
    "backbone": {"AP": {"0": 0.45, "1": 0.47}},
    "backbone, neck, head": {"AP": {"0": 0.46, "1": None}},
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    (tmp_path / "table9_demo.json").write_text(json.dumps(collected(9, ROWS)))
    return tmp_path


def test_a_table_has_the_papers_number_ours_and_the_gap(results):
    lines = report.table_section(9).splitlines()
    assert "seeds 0, 1; 3 runs, 4.5 min one after the other on 2 CPU cores (threads of a run: 1), torch" in lines[0]
    assert lines[0].endswith("torch 2.15.0, 2026-01-02, commit abc1234.")
    assert "| nothing | AP | 46.8 | 41.0 ± 1.4 (2) | -5.8 |" in lines
    assert "| nothing | AP50 | 66.2 |  |  |" in lines  # not measured: blank
    assert "| backbone, neck, head | AP | 51.5 | 46.0 | -5.5 |" in lines
    assert (
        lines[-1] == "![Table 9: Parts initialized from the warmed-up model, profile demo](../figures/table9_demo.png)"
    )
    assert report.table_section(3) == report.NOTHING


def test_claims_are_judged_by_pairs(results):
    lines = report.claims_section().splitlines()
    assert lines[0] == "| table | claim | paper | demo |"
    # 45 - 40 and 47 - 42: no spread at all, so the interval is a point
    assert "| 9 | the backbone alone beats nothing | +3.8 | holds (+5.0 ± 0.0) |" in lines
    assert "| 9 | neck and head add to the backbone | +0.9 | undecided: one seed (+1.0) |" in lines
    assert "| 7 | the largest pool beats the smallest, warmed up | +1.8 |  |" in lines


def test_a_run_that_tables_share_is_counted_once_in_the_sum(results):
    (results / "table3_demo.json").write_text(json.dumps(collected(3, {}, seeds=(0,))))
    lines = report.cost_section().splitlines()
    assert "| Table 3: Epochs of the warm-up | 2 | 3.0 min |" in lines
    assert lines[-1] == "| all, each run once | 3 | 4.5 min |"


def test_the_labels_are_beside_their_truth(results):
    """By hand: 2,304 labels of 500 images are 4.6 each; entities have no precision, as things alone have a truth."""
    quality = {"threshold": 0.5, "labels": 2304, "precision": 0.83, "recall": 0.686, "recall_75": 0.389, "images": 500}
    labels = RUN | {"stage": "labels", "what": "tiny by objects", "labels": quality | {"recall_unnamed": 0.248}}
    found = collected(7, {}) | {"runs": {"0": {"labels-0": labels, "finetune-0": RUN}}}
    (results / "table7_demo.json").write_text(json.dumps(found))
    lines = report.labels_section().splitlines()
    assert lines[-1] == "| tiny by objects | 0 | 500 | 4.6 | 83.0 | 68.6 | 38.9 | 24.8 |"
    assert sum("tiny by objects" in line for line in lines) == 1 and "labels above 0.5" in lines[0]


def test_the_operating_point_is_shown(results):
    assert report.regime_section() == report.NOTHING
    rows = {"labeler": {"agnostic": 0.42, "agnostic_75": 0.36, "specific": None, "ratio": None, "steps": 1200}}
    place = {"device": "2 CPU cores", "torch": "2.15.0", "date": "2026-01-02", "commit": "abc"}
    found = {"profile": "demo", "rows": rows, "config": {"seed": 0}, "environment": place}
    (results / "regime_demo_seed0.json").write_text(json.dumps(found))
    assert "| labeler | 1,200 |  | 42.0 | 36.0 |  |" in report.regime_section().splitlines()


def test_the_csv_has_every_seed():
    lines = csv_text(collected(9, ROWS)).splitlines()
    assert lines[0] == "row,column,paper,mean,spread,seeds,seed 0,seed 1"
    assert lines[1] == "nothing,AP,46.8,41.00,1.41,2,40.00,42.00" and lines[2] == "nothing,AP50,66.2,,,0,,"
    assert lines[4] == "backbone,AP50,69.2,,,0,,"  # blank, as in the report
    assert lines[5] == '"backbone, neck, head",AP,51.5,46.00,,1,46.00,'


def test_everything_is_renewed_and_prose_stays(results, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "REPORT", tmp_path / "reports" / "report.md")
    monkeypatch.setattr(report.paths, "REPOSITORY", tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "reports").mkdir()
    markers = "".join("{}\n{}\n".format(*report.markers(name)) for name in report.GENERATED)
    (tmp_path / "reports/report.md").write_text(f"# Mine\n\nA word by hand.\n\n{markers}")
    written = report.renew()
    text = (tmp_path / "reports/report.md").read_text()
    assert "A word by hand." in text and "| backbone | AP | 50.6 | 46.0 ± 1.4 (2) | -4.6 |" in text
    names = ["report.md", "report.html", "table9_demo.csv", "pipeline.png", "curves_demo.png", "table9_demo.png"]
    assert [file.name for file in written] == names
    assert "<td>" in (tmp_path / "reports/report.html").read_text() and all(file.stat().st_size for file in written)
    before = [file.read_bytes() for file in written]
    assert [file.read_bytes() for file in report.renew()] == before


@pytest.mark.parametrize("name", report.GENERATED)
def test_the_report_shows_the_tracked_results(name):
    begin, end = report.markers(name)
    shown = report.REPORT.read_text().partition(begin)[2].partition(end)[0].strip()
    assert shown == report.GENERATED[name](), "the report is stale: run make report"


def test_the_tracked_figures_are_of_the_tracked_results(tmp_path):
    """Drawn again and compared pixel by pixel: one moved point of a chart is some dozen pixels."""
    folder = report.README.parent / "figures"
    drawn = pictures.save(report.drawn(), tmp_path)
    assert {file.name for file in folder.glob("*.png")} == {file.name for file in drawn}, "stale: run make report"
    for file in drawn:
        own, tracked = (np.asarray(Image.open(each).convert("RGB"), int) for each in (file, folder / file.name))
        assert own.shape == tracked.shape, f"{file.name} is stale: run make report"
        other = (np.abs(own - tracked).max(-1) > 40).sum()
        # Scenes may be drawn with other last bits on another processor, which can move one of the 128 colors.
        allowed = own[..., 0].size // 100 if file.stem in ("stages", "detections") else 10
        assert other < allowed, f"{file.name} is stale ({other} pixels): run make report"


def test_the_tracked_tables_are_of_the_tracked_results():
    stale = [file for file, text in report.files().items() if not file.exists() or file.read_text() != text]
    tracked = set(report.REPORT.parent.glob("tables/*.csv"))
    assert not stale and tracked == set(report.files()), "the tables are stale: run make report"
    page = report.REPORT.with_suffix(".html").read_text()
    assert page == report.page(report.REPORT.read_text()), "the HTML is stale: run make report"
