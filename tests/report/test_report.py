"""The report: rendered from made-up results in a temporary folder, and compared with the tracked results."""

import json

import numpy as np
import pytest
from PIL import Image

from cassl_lib import paths
from cassl_lib.report import blocks, chain, markers, pictures, report, tables
from cassl_lib.report.report import csv_text
from cassl_lib.tables import results

RUN = {"stage": "finetune", "steps": 10, "seconds": 90.0, "device": "2 CPU cores", "threads": "1", "torch": "2.15.0"}
RUN |= {"date": "2026-01-02", "commit": "abc1234"}
REPORT = paths.REPOSITORY / report.REPORT
SECTIONS = [(file, name) for file, sections in report.GENERATED.items() for name in sections]


def collected(table, rows, profile="demo", seeds=(0, 1)):
    runs = {str(seed): {f"finetune-{seed}": RUN, "labeler-0": RUN} for seed in seeds}
    return {"table": table, "profile": profile, "seeds": list(seeds), "rows": rows, "runs": runs}


ROWS = {
    "nothing": {"AP": {"0": 0.40, "1": 0.42}, "AP50": {"0": None, "1": None}},
    "backbone": {"AP": {"0": 0.45, "1": 0.47}},
    "backbone, neck, head": {"AP": {"0": 0.46, "1": None}},
}


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    (tmp_path / "table9_demo.json").write_text(json.dumps(collected(9, ROWS)))
    return tmp_path


def lines_of(section):
    return blocks.markdown(section).splitlines()


def test_a_table_shows_our_numbers_over_the_papers(recorded):
    lines = lines_of(tables.table(9))
    assert lines[0] == "Table 9: Initialized parts. Profile demo, seeds 0 and 1, on 2 CPU cores, 2026-01-02."
    assert lines[2] == "| backbone | neck | head | classifier | AP | AP50 | AP75 |"
    # not measured: a dash over the paper's number
    assert "|  |  |  |  | 41.0 ± 1.4<br><sub>46.8</sub> | —<br><sub>66.2</sub> | —<br><sub>50.8</sub> |" in lines
    assert "| ✓ | ✓ | ✓ |  | 46.0<br><sub>51.5</sub> | —<br><sub>69.5</sub> | —<br><sub>55.3</sub> |" in lines
    assert lines[-3] == "![Chart of the table above: our numbers and the paper's.](../figures/table9_demo.png)"
    assert tables.table(3) == blocks.NOTHING


def test_claims_are_judged_by_paired_differences(recorded):
    lines = lines_of(tables.claims())
    assert lines[0] == (
        "| table | claim | paper<br>difference | ours, profile demo<br>difference | ours, profile demo<br>verdict |"
    )
    # 45 - 40 and 47 - 42: no standard deviation, so the interval is a point
    claim = "initializing the backbone alone improves over ImageNet pretraining"
    assert f"| 9 | {claim} | +3.8 | +5.0 ± 0.0 | holds |" in lines
    claim = "initializing neck and head adds to initializing the backbone"
    assert f"| 9 | {claim} | +0.9 | +1.0 | undecided: one seed |" in lines
    claim = "more unlabeled images (large against tiny) improve the warmed-up model"
    assert f"| 7 | {claim} | +1.8 |  | not measured |" in lines


def test_a_run_shared_by_tables_is_counted_once_in_the_sum(recorded):
    (recorded / "table3_demo.json").write_text(json.dumps(collected(3, {}, seeds=(0,))))
    lines = lines_of(tables.cost())
    facts = "2 CPU cores | 1 | 2.15.0 | 2026-01-02 | abc1234 |"
    assert f"| Table 3: Warm-up epochs | 2 | 3.0 min | {facts}" in lines
    assert f"| Table 9: Initialized parts | 3 | 4.5 min | {facts}" in lines
    assert lines[-1] == f"| all, shared runs counted once | 3 | 4.5 min | {facts}"


def test_pseudo_labels_are_compared_with_their_ground_truth(recorded):
    """By hand: 2,304 labels of 500 images are 4.6 per image. Entities have no precision, only things do."""
    quality = {"threshold": 0.5, "labels": 2304, "precision": 0.83, "recall": 0.686, "recall_75": 0.389, "images": 500}
    labels = RUN | {"stage": "labels", "what": "tiny by objects", "labels": quality | {"recall_unnamed": 0.248}}
    table = collected(7, {}) | {"runs": {"0": {"labels-0": labels, "finetune-0": RUN}}}
    (recorded / "table7_demo.json").write_text(json.dumps(table))
    lines = lines_of(chain.pseudo_labels())
    assert lines[-1] == "| tiny | objects | 0 | 500 | 4.6 | 83.0 | 68.6 | 38.9 | 24.8 |"
    assert sum("| tiny |" in line for line in lines) == 1 and "a score above 0.5" in lines[0]


def test_the_operating_point_is_shown(recorded):
    assert chain.operating_point() == blocks.NOTHING
    rows = {"labeler": {"agnostic": 0.42, "agnostic_75": 0.36, "specific": None, "ratio": None, "steps": 1200}}
    place = {"device": "2 CPU cores", "torch": "2.15.0", "date": "2026-01-02", "commit": "abc"}
    point = {"profile": "demo", "rows": rows, "config": {"seed": 0}, "environment": place}
    (recorded / "regime_demo_seed0.json").write_text(json.dumps(point))
    assert "| pseudo labeler | 1,200 |  | 42.0 | 36.0 |  |" in lines_of(chain.operating_point())


def test_words_of_older_records_are_updated():
    assert chain.reworded("labeler, entities, one a pixel") == "pseudo labeler, entities, non-overlapping masks"
    assert chain.reworded("pseudo labeler, entities") == "pseudo labeler, entities"
    assert chain.reworded("from nothing, 1200 steps") == "from scratch, 1200 steps"


def test_the_csv_has_every_seed():
    lines = csv_text(collected(9, ROWS)).splitlines()
    assert lines[0] == "row,column,paper,mean,std,seeds,seed 0,seed 1"
    assert lines[1] == "nothing,AP,46.8,41.00,1.41,2,40.00,42.00" and lines[2] == "nothing,AP50,66.2,,,0,,"
    assert lines[4] == "backbone,AP50,69.2,,,0,,"  # empty, as in the report
    assert lines[5] == '"backbone, neck, head",AP,51.5,46.00,,1,46.00,'


def test_the_csv_leaves_out_cells_that_neither_the_paper_nor_the_profile_has():
    rows = {"0.3": {"warm-up entity AP": {"0": None}}, "0.4": {}}
    assert csv_text(collected("threshold", rows)).splitlines()[1:] == ["0.3,warm-up entity AP,,,,0,,"]


def test_everything_is_regenerated_and_prose_stays(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "REPOSITORY", tmp_path)
    for folder in ("figures", "reports/tables", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "figures/stale.png").touch()
    (tmp_path / "reports/tables/stale.csv").touch()
    for name, sections in report.GENERATED.items():
        empty = "".join("{}\n{}\n".format(*markers.markers(section)) for section in sections)
        (tmp_path / name).write_text(f"# Mine\n\nA word by hand.\n\n{empty}")
    written = report.renew()
    text = (tmp_path / "reports/report.md").read_text()
    assert "A word by hand." in text and "| ✓ |  |  |  | 46.0 ± 1.4<br><sub>50.6</sub> |" in text
    assert [str(file.relative_to(tmp_path)) for file in written] == [
        "README.md",
        "docs/scale.md",
        "docs/weights.md",
        "reports/report.md",
        "reports/report.html",
        "reports/tables/table9_demo.csv",
        "figures/pipeline.png",
        "figures/curves_demo.png",
        "figures/table9_demo.png",
    ]
    assert not (tmp_path / "figures/stale.png").exists() and not (tmp_path / "reports/tables/stale.csv").exists()
    page = (tmp_path / "reports/report.html").read_text()
    assert "<td class" in page and "A word by hand." in page and all(file.stat().st_size for file in written)
    before = [file.read_bytes() for file in written]
    assert [file.read_bytes() for file in report.renew()] == before


@pytest.mark.parametrize(("file", "name"), SECTIONS)
def test_the_files_show_the_tracked_results(file, name):
    text = (paths.REPOSITORY / file).read_text()
    assert all(marker in text for marker in markers.markers(name)), f"{file} has no section {name!r}"
    shown = blocks.markdown(report.GENERATED[file][name]())
    assert markers.between(text, name) == shown, f"{file} is stale: run make report"


def test_the_report_has_a_section_for_every_table_under_its_own_heading():
    headings = [line.removeprefix("### ") for line in REPORT.read_text().splitlines() if line.startswith("### ")]
    assert headings == [tables.compare.heading(table) for table in tables.compare.LAYOUTS]


def test_the_tracked_figures_show_the_tracked_results(tmp_path):
    """Redrawn and compared pixel by pixel: one moved point of a chart is some dozen pixels."""
    folder = paths.REPOSITORY / "figures"
    redrawn = pictures.save(report.figures(), tmp_path)
    assert {file.name for file in folder.glob("*.png")} == {file.name for file in redrawn}, "stale: run make report"
    for file in redrawn:
        own, tracked = (np.asarray(Image.open(each).convert("RGB"), int) for each in (file, folder / file.name))
        assert own.shape == tracked.shape, f"{file.name} is stale: run make report"
        other = (np.abs(own - tracked).max(-1) > 40).sum()
        # Processors may draw scenes with other last bits, which can move one of the 128 colors.
        allowed = own[..., 0].size // 100 if file.stem in ("stages", "detections") else 10
        assert other < allowed, f"{file.name} is stale ({other} pixels): run make report"


def test_the_tracked_tables_show_the_tracked_results():
    files = {paths.REPOSITORY / name: text for name, text in report.csv_files().items()}
    stale = [file for file, text in files.items() if not file.exists() or file.read_text() != text]
    tracked = set((paths.REPOSITORY / "reports/tables").glob("*.csv"))
    assert not stale and tracked == set(files), "the tables are stale: run make report"
    page = REPORT.with_suffix(".html").read_text()
    assert page == report.html_page(), "the HTML is stale: run make report"
