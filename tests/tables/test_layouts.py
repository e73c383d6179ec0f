"""The tables in the paper's layout: rows, columns and numbers where the paper prints them."""

import pytest

from cassl_lib import paper
from cassl_lib.tables import compare
from cassl_lib.tables.compare import Cell, Number, render
from cassl_lib.tables.compare.layouts import MISSING, TICK, caption

RUN = {"seconds": 1.0, "device": "2 CPU cores", "date": "2026-01-02"}
PRINTED = {1: paper.TABLE1, 2: paper.TABLE2, 3: paper.TABLE3, 4: paper.TABLE4, 5: paper.TABLE5, 6: paper.TABLE6}
PRINTED |= {7: paper.TABLE7, 9: paper.TABLE9, "threshold": {"0.3": {}, "0.5": {}}, "shift": {"the same look": {}}}


def collected(table, cells=None, runs=()):
    """A table of the paper's rows, with numbers (by row and column) of seeds 0 and 1."""
    rows = {row: {} for row in PRINTED[table]}
    for (row, column), numbers in (cells or {}).items():
        rows[row][column] = dict(zip("01", numbers, strict=False))
    return {"table": table, "profile": "demo", "seeds": [0, 1], "rows": rows, "runs": {"0": dict(runs) or {"a": RUN}}}


def texts(cells):
    return [cell.text for cell in cells]


def papers(cells):
    return [number.paper for cell in cells for number in cell.numbers]


@pytest.mark.parametrize("table", compare.LAYOUTS)
def test_every_row_has_as_many_columns_as_the_header(table):
    layout = compare.layout(collected(table))
    assert {sum(cell.span for cell in row) for row in (*layout.header, *layout.body)} == {layout.width}
    assert len(layout.body) == len(PRINTED[table]) + (table == 1)
    lines = render.markdown(layout).splitlines()[2:]
    assert {line.count(" | ") for line in lines} == {layout.width - 1}


def test_table_1_has_a_gap_row():
    """By hand: gaps 0.50 - 0.45 and 0.52 - 0.44, mean 6.5; the paper's are 5.1 and 1.9."""
    human, pseudo = PRINTED[1]
    column = "class-specific AP"
    layout = compare.layout(collected(1, {(human, column): (0.50, 0.52), (pseudo, column): (0.45, 0.44)}))
    assert texts(layout.body[0])[:2] == ["COCO train2017", "Ground-truth"]
    gap = layout.body[-1]
    assert gap[0].text == "gap" and papers(gap) == pytest.approx([5.1, 1.9])
    assert gap[2].numbers[0].ours == pytest.approx((5, 8)) and gap[3].numbers[0].ours == ()


def test_table_1_has_no_gap_of_unpaired_seeds():
    human, pseudo = PRINTED[1]
    cells = {(human, "class-agnostic AP"): (0.50, None), (pseudo, "class-agnostic AP"): (None, 0.44)}
    assert compare.layout(collected(1, cells)).body[-1][3].numbers[0].ours == ()


def test_table_2_groups_its_columns_as_the_paper_does():
    layout = compare.layout(collected(2))
    assert [(cell.text, cell.span) for cell in layout.header[0]] == [
        ("warm-up", 1),
        ("warmed-up model", 4),
        ("finetuned model", 3),
    ]
    assert texts(layout.header[1]) == [
        *("training data", "object box AP", "object mask AP", "cls-specific AP", "entity AP"),
        *("box AP", "mask AP", "PQ"),
    ]
    assert papers(layout.body[3]) == [40.0, 33.4, None, None, 48.1, 45.0, 42.5]


def test_table_3_has_one_row_per_length():
    layout = compare.layout(collected(3))
    assert texts(layout.header[0]) == ["epochs", "AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert papers(layout.body[4]) == [40.2, 60.9, 42.8, 15.4, 37.0, 54.9]


def test_table_4_is_a_grid():
    layout = compare.layout(collected(4, {("3x", "5x"): (0.43,)}))
    assert [papers(row) for row in layout.body] == [list(row.values()) for row in paper.TABLE4.values()]
    assert layout.body[2][5] == Cell(numbers=(Number((43.0,), 48.2),))


def test_table_5_has_two_rows_of_five():
    layout = compare.layout(collected(5))
    assert [papers(row) for row in layout.body] == list(paper.TABLE5.values())


def test_table_6_holds_pairs():
    cells = {("weak", "strong, warm-up entity AP"): (0.41,), ("weak", "strong, finetuned det AP"): (0.43,)}
    layout = compare.layout(collected(6, cells))
    assert [papers(row) for row in layout.body] == [[40.2, 48.2, 40.6, 48.6], [40.2, 48.6, 40.6, 49.1]]
    assert "(41.0, 43.0)<br><sub>(40.6, 48.6)</sub>" in render.markdown(layout)
    assert layout.legend.endswith("AP after the warm-up, AP after finetuning.")


def test_table_7_counts_the_images_of_our_pools_and_the_papers():
    labels = RUN | {"what": "small by entities", "labels": {"images": 2750}}
    layout = compare.layout(collected(7, runs={"labels-0": labels}))
    assert texts(layout.body[1])[:3] == ["Small", "2,750", "660,000"]
    assert texts(layout.body[0])[:3] == ["Tiny", MISSING, "123,000"]


def test_table_9_ticks_the_initialized_parts():
    layout = compare.layout(collected(9))
    ticks = [[cell.text == TICK for cell in row[:4]] for row in layout.body]
    assert [sum(row) for row in ticks] == [0, 1, 2, 3, 4] and ticks[2] == [True, True, False, False]
    assert papers(layout.body[1]) == [50.6, 69.2, 55.2]


def test_a_table_that_the_paper_does_not_have_shows_our_numbers_alone():
    layout = compare.layout(collected("threshold", {("0.5", compare.WARM): (0.44, 0.46)}))
    assert not layout.with_paper
    assert render.markdown(layout).splitlines()[-1] == "| 0.5 | 45.0 ± 1.4 | — |"
    assert "opacity" not in render.html(layout)


def test_the_table_of_looks_shows_warmed_up_and_finetuned_models():
    layout = compare.layout(collected("shift", {("the same look", compare.WARM): (0.44, 0.46)}))
    assert not layout.with_paper
    assert render.markdown(layout).splitlines()[-1] == "| the same look | 45.0 ± 1.4 | — |"
    assert layout.caption.startswith("Unlabeled images that look different. Profile demo")


@pytest.mark.parametrize("table", compare.LAYOUTS)
def test_rows_with_other_names_are_shown(table):
    extra = {"finetuned at a higher rate": {}}
    whole = collected(table)
    whole["rows"] |= extra
    layout = compare.layout(whole)
    assert {sum(cell.span for cell in row) for row in (*layout.header, *layout.body)} == {layout.width}
    assert any("finetuned at a higher rate" in texts(row) for row in layout.body)
    assert compare.html(whole) and compare.text(whole) and compare.chart_data(whole)


def test_options_of_table_9_stand_beside_its_ticks():
    whole = collected(9)
    row = "backbone, neck, 10 times the rate"
    whole["rows"][row] = {"AP": {"0": 0.5}}
    layout = compare.layout(whole)
    assert texts(layout.header[0])[:5] == ["backbone", "neck", "head", "classifier", "option"]
    assert texts(layout.body[-1])[:5] == [TICK, TICK, "", "", "10 times the rate"]
    assert [row[4].text for row in layout.body[:-1]] == [""] * 5


CURVE = {
    "steps": {"4000": {"0": 0.33, "1": 0.35}, "1000": {"0": 0.28, "1": 0.30}, "2000 steps": {"0": None, "1": None}},
    "chosen": {"0": "4000", "1": "1000"},
}


def with_lengths(config):
    return collected(2) | {"lengths": {"ImageNet, finetuned det AP": CURVE}, "config": config}


def test_lengths_show_steps_epochs_of_the_paper_box_ap_and_how_many_seeds_chose_them():
    """By hand: 1,000 steps stand for 36 epochs, 4,000 for 144; 28 and 30 have mean 29 and std sqrt(2)."""
    (layout,) = compare.lengths(with_lengths({"finetune": {"steps": 1000}}))
    assert render.markdown(layout).splitlines()[-2:] == [
        "| ImageNet, finetuned det AP | 1,000 | 36 | 29.0 ± 1.4 | 1 of 2 seeds |",
        "|  | 4,000 | 144 | 34.0 ± 1.4 | 1 of 2 seeds |",
    ]
    assert compare.markdown(with_lengths({"finetune": {"steps": 1000}})).endswith(render.markdown(layout))


@pytest.mark.parametrize(("multiples", "epochs"), [([2, 1], ["36", "72"]), ([1, 2, 4], ["", ""])])
def test_lengths_in_epochs_are_told_by_the_multiples_of_the_configuration(multiples, epochs):
    """A length without a run yet leaves it open which multiple is which."""
    (layout,) = compare.lengths(with_lengths({"finetune": {"steps": 0}, "baseline_lengths": multiples}))
    assert [row[2].text for row in layout.body] == epochs


def test_lengths_of_other_metrics_and_without_numbers_are_not_shown():
    names = ("ImageNet, finetuned mask AP", "ImageNet, finetuned PQ", "nothing, AP50", "nothing, AP75")
    assert compare.lengths(collected(2) | {"lengths": dict.fromkeys(names, CURVE), "config": {}}) == []
    missing = {"steps": {"1000 steps": {"0": None}}, "chosen": {"0": None}}
    assert compare.lengths(collected(2) | {"lengths": {"ImageNet, finetuned det AP": missing}}) == []
    assert compare.lengths(collected(2)) == []


def test_a_cell_shows_mean_and_std_over_the_papers_number():
    layout = compare.layout(collected(9, {("nothing", "AP"): (0.40, 0.42), ("backbone", "AP50"): (0.7,)}))
    lines = render.markdown(layout).splitlines()
    assert lines[-5].endswith("| 41.0 ± 1.4<br><sub>46.8</sub> | —<br><sub>66.2</sub> | —<br><sub>50.8</sub> |")
    assert "70.0<br><sub>69.2</sub>" in lines[-4]
    html = render.html(layout, inline=False)
    assert '41.0<small class="std"> ± 1.4</small><span class="paper">46.8</span>' in html


def test_a_cell_without_any_number_is_one_dash():
    layout = compare.layout(collected(2))
    assert render.markdown(layout).splitlines()[-1].startswith("| Entities (P,A) | — | — | — | —<br><sub>40.2</sub> |")


def test_the_caption_names_title_profile_seeds_hardware_dates_and_several_commits():
    runs = {"a": RUN, "b": RUN | {"date": "2026-01-05", "device": "an H100"}}
    assert caption(collected(3, runs=runs)) == (
        "Table 3: Warm-up epochs. Profile demo, seeds 0 and 1, on 2 CPU cores and an H100, 2026-01-02 to 2026-01-05."
    )
    runs = {"a": RUN | {"commit": "1ee60c3"}, "b": RUN | {"commit": "0eb8e3a"}}
    assert caption(collected(3, runs=runs)).endswith(
        "2026-01-02. The runs are of 2 revisions of the code: 0eb8e3a and 1ee60c3."
    )
    assert caption(collected(3, runs={"a": runs["a"]})).endswith("on 2 CPU cores, 2026-01-02.")
    empty = collected(3) | {"runs": {"0": {}}, "seeds": [0]}
    assert caption(empty) == "Table 3: Warm-up epochs. Profile demo, seed 0, no finished runs."


def test_charts_name_conditions_and_metrics():
    ours, theirs = compare.chart_data(collected(4, {("3x", "5x"): (0.43, 0.45)}))
    name = "warm-up 5x, finetuned det AP"
    assert ours["finetuning 3x"][name] == [43.0, 45.0] and theirs["finetuning 3x"][name] == 48.2
    ours, theirs = compare.chart_data(collected(5))
    assert theirs["pseudo labeler"]["pseudo labeler 1, entity AP"] == 38.0
    assert list(compare.chart_data(collected(2))[1]["ImageNet"]) == list(paper.TABLE2_COLUMNS)


def test_text_for_the_shell_is_in_long_form():
    shown = compare.text(collected(9, {("nothing", "AP"): (0.40, 0.42)})).splitlines()
    assert shown[0] == "Table 9: Initialized parts, profile demo: 1 runs, 0.00 h in all"
    assert shown[1].split() == ["row", "column", "paper", "ours", "gap"]
    assert shown[2].split() == ["nothing", "AP", "46.8", "41.0", "±", "1.4", "(2)", "-5.8"]
