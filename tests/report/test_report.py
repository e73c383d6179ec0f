"""The report: rendered from made-up results in a temporary folder, and compared with the tracked results."""

import json

import numpy as np
import pytest
from PIL import Image
from recorded import recorded_chain

from cassl_lib import paths
from cassl_lib.report import blocks, chain, claims, markers, pictures, readme, report, tables
from cassl_lib.report.report import csv_text
from cassl_lib.tables import compare, results

RUN = {
    "stage": "finetune",
    "what": "instances",
    "steps": 10,
    "seconds": 90.0,
    "device": "2 CPU cores",
    "threads": "1",
    "torch": "2.15.0",
}
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


def test_a_table_shows_the_lengths_of_training_that_compete_for_its_cells(recorded):
    """By hand: 1,000 steps stand for 36 epochs; 30 and 32 have mean 31 and std sqrt(2)."""
    curve = {
        "steps": {"1000": {"0": 0.30, "1": 0.32}, "4000": {"0": 0.4, "1": 0.42}},
        "chosen": {"0": "4000", "1": "4000"},
    }
    table = collected(9, ROWS) | {"lengths": {"nothing, AP": curve}, "config": {"finetune": {"steps": 1000}}}
    (recorded / "table9_demo.json").write_text(json.dumps(table))
    lines = lines_of(tables.table(9))
    assert "| nothing, AP | 1,000 | 36 | 31.0 ± 1.4 | 0 of 2 seeds |" in lines
    assert "|  | 4,000 | 144 | 41.0 ± 1.4 | 2 of 2 seeds |" in lines
    assert "<td" in blocks.html(tables.table(9)) and "144" in blocks.html(tables.table(9))


def test_the_baseline_over_its_length_is_drawn_once_table_2_is_complete(recorded):
    assert tables.baseline_lengths() == blocks.NOTHING
    rows = {row: {compare.DET: {"0": 0.3, "1": 0.32}} for row in ("ImageNet", "Objects (G,A)", "Objects (P,A)")}
    curve = {"steps": {"1000": {"0": 0.28}, "4000": {"0": 0.3}}, "chosen": {"0": "4000"}}
    stages = {name: {"steps": 1000} for name in ("pseudo_labeler", "warmup", "finetune")}
    table = collected(2, rows) | {"lengths": {f"ImageNet, {compare.DET}": curve}, "config": stages}
    (recorded / "table2_demo.json").write_text(json.dumps(table))
    (picture,) = tables.baseline_lengths()
    assert picture.file == "../figures/lengths_demo.png" and "lengths_demo" in report.figures()


def test_claims_are_judged_by_paired_differences(recorded):
    lines = lines_of(claims.table())
    assert lines[0] == "Profile demo, differences in percent."
    assert lines[2] == "| table | claim | compared | seeds | mean | std | 95% interval | paper | verdict |"
    # 45 - 40 and 47 - 42: no standard deviation, so the interval is a point
    claim = "initializing the backbone alone improves over the best baseline | backbone minus nothing, AP"
    assert f"| 9 | {claim} | 2 | +5.0 | 0.0 | +5.00 to +5.00 | +3.8 | holds |" in lines
    claim = "initializing neck and head adds to initializing the backbone | backbone, neck, head minus backbone, AP"
    assert f"| 9 | {claim} | 1 | +1.0 |  |  | +0.9 | undecided: one seed |" in lines
    claim = "more unlabeled images (large against tiny) improve the warmed-up model"
    compared = "Large minus Tiny, warm-up entity AP"
    assert f"| 7 | {claim} | {compared} | 0 |  |  |  | +1.8 | not measured |" in lines
    assert lines[-1].startswith("| chain | the warmed-up model is better than its pseudo labeler")


def summaries(*numbers):
    """Summaries of chains of seeds 0, 1, ... with student and pseudo labeler as given and other numbers alike."""
    same = recorded_chain() | {
        "cassl_ap": 0.35,
        "baseline_ap": 0.32,
        "objects_ga_ap": 0.30,
        "profile": "demo",
        "split": "large",
    }
    place = {"device": "2 CPU cores", "torch": "2.15.0", "date": "2026-01-02", "commit": "abc"}
    return [
        recorded_chain()
        | same
        | {"seed": seed, "warmup_agnostic_ap": student, "labeler_agnostic_ap": labeler, "environment": place}
        for seed, (student, labeler) in enumerate(numbers)
    ]


def test_the_report_opens_with_what_holds(recorded):
    """By hand: student minus pseudo labeler 1 and 2, mean 1.5, std 0.7071, half width 12.706 * 0.5 = 6.35."""
    for chain_summary in summaries((0.40, 0.39), (0.42, 0.40)):
        (recorded / f"chain_demo_large_seed{chain_summary['seed']}.json").write_text(json.dumps(chain_summary))
    lines = lines_of(claims.opening())
    count = len(compare.CLAIMS) + 1
    assert lines[0] == (
        "Small-scale results (profile demo: drawn scenes, a small model): only the order of rows can be compared with "
        f"the paper. Of {count} claims, 1 holds, 2 are undecided and {count - 3} are not measured."
    )
    assert lines[2] == (
        "Main chain, pool large, seeds 0 and 1. Box AP after finetuning: CA-SSL 35.0 ± 0.0, the best of the baselines "
        "trained for 1 and 4 times as long 32.0 ± 0.0, Objects (G,A) 30.0 ± 0.0. Class-agnostic box AP before "
        "finetuning: warmed-up model "
        "41.0 ± 1.4, its pseudo labeler 39.5 ± 0.7."
    )
    assert lines[4:8] == [
        "Holds:",
        "",
        "- initializing the backbone alone improves over the best baseline (Table 9: +5.0, 95% interval +5.00 to "
        "+5.00, 2 seeds; paper +3.8)",
        "",
    ]
    assert lines[8] == "Undecided:" and "Does not hold:" not in lines
    assert lines[-1] == (
        "- the warmed-up model is better than its pseudo labeler, in class-agnostic AP (main chain: +1.5, 95% interval "
        "-4.85 to +7.85, 2 seeds; paper -0.1)"
    )
    assert lines_of(claims.short()) == lines[:3]  # the README: no claim fails
    shown = blocks.html(claims.opening())
    assert "<p>Holds:</p><ul><li>initializing the backbone" in shown and shown.count("<li>") == 3


def test_a_claim_that_fails_is_named_in_the_opening(recorded):
    rows = {"nothing": {"AP": {"0": 0.5, "1": 0.6}}, "backbone": {"AP": {"0": 0.4, "1": 0.5}}}
    (recorded / "table9_demo.json").write_text(json.dumps(collected(9, rows)))
    lines = lines_of(claims.opening())
    assert " claims, 1 does not hold and " in lines[0] and "Holds:" not in lines
    assert lines_of(claims.short()) == lines[: len(lines_of(claims.short()))] and "Does not hold:" in lines_of(
        claims.short()
    )
    assert lines[2] == "Does not hold:" and "-10.0, 95% interval -10.00 to -10.00, 2 seeds" in lines[4]


def test_revisions_of_the_code_are_named_in_the_opening_and_the_chain(recorded):
    first, second = summaries((0.40, 0.39), (0.42, 0.40))
    second["environment"] = second["environment"] | {"commit": "def"}
    for each in (first, second):
        (recorded / f"chain_demo_large_seed{each['seed']}.json").write_text(json.dumps(each))
    sentence = "The runs are of 2 revisions of the code: abc and def."
    assert lines_of(claims.opening())[2].endswith(sentence)
    assert sentence in chain._origin([first, second]) and sentence not in chain._origin([first])


def test_without_results_there_is_no_opening_and_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert claims.opening() == [] and blocks.markdown(readme.picture()) == ""
    assert claims.table() == blocks.NOTHING and tables.curves() == blocks.NOTHING == chain.operating_point()
    empty = "".join("{}\n{}\n".format(*markers.markers(name)) for name in report.GENERATED[report.REPORT])
    assert blocks.markdown(claims.opening()) == "" and markers.filled(empty, {"opening": ""}).count("opening") == 2


def test_the_regime_counts_the_scenes_of_each_profile():
    """The pools add up: 100, 100 + 460, 560 + 940, 1,500 + 1,600."""
    lines = lines_of(tables.regime())
    assert lines[0] == "|  | profile demo | profile gpu |"
    columns = {line.split(" | ")[0].strip("| "): line.split(" | ")[1] for line in lines[2:]}
    shown = [columns[f"pool {split}"] for split in ("tiny", "small", "base", "large")]
    assert shown == ["100", "560", "1,500", "3,100"]
    assert columns["labeled"] == "100" and columns["validation"] == "1,000" and columns["tuning"] == "300"


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
    assert lines[-1] == "| tiny | objects | 0.5 | 0 | 500 | 4.6 | 83.0 | 68.6 | 38.9 | 24.8 |"
    assert sum("| tiny |" in line for line in lines) == 1 and "above the threshold of their pseudo labeler" in lines[0]


def test_the_operating_point_is_shown(recorded):
    assert chain.operating_point() == blocks.NOTHING
    row = {"agnostic": 0.42, "agnostic_75": 0.36, "specific": None, "ratio": None, "steps": 1200}
    tuned = row | {"specific": 0.21, "ratio": 0.5, "steps": 2400}
    place = {"device": "2 CPU cores", "torch": "2.15.0", "date": "2026-01-02", "commit": "abc"}
    point = {"profile": "demo", "rows": {"pseudo labeler": row, "baseline, 2400 steps": tuned}}
    point |= {"chosen": {"baseline": {"length": 2, "steps": 2400}}, "config": {"seed": 0}, "environment": place}
    (recorded / "operating_point_demo_seed0.json").write_text(json.dumps(point))
    lines = lines_of(chain.operating_point())
    assert "| pseudo labeler | 1,200 |  | 42.0 | 36.0 |  |" in lines
    assert "| baseline, 2400 steps | 2,400 | 21.0 | 42.0 | 36.0 | 0.50 |" in lines
    assert lines[-1].endswith("AP on the tuning scenes: baseline 2x (2,400 steps).")


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
        "figures/joint_training.png",
        "figures/pipeline.png",
        "figures/entities.png",
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
    assert headings == [compare.heading(table) for table in compare.LAYOUTS]


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
        allowed = own[..., 0].size // 100 if file.stem in ("stages", "detections", "pipeline", "entities") else 10
        assert other < allowed, f"{file.name} is stale ({other} pixels): run make report"


def test_the_tracked_tables_show_the_tracked_results():
    files = {paths.REPOSITORY / name: text for name, text in report.csv_files().items()}
    stale = [file for file, text in files.items() if not file.exists() or file.read_text() != text]
    tracked = set((paths.REPOSITORY / "reports/tables").glob("*.csv"))
    assert not stale and tracked == set(files), "the tables are stale: run make report"
    page = REPORT.with_suffix(".html").read_text()
    assert page == report.html_page(), "the HTML is stale: run make report"
