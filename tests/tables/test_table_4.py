"""Table 4: epochs of warm-up and finetuning."""

from table_requests import cells_of, runs_by_stage, unprinted

from cassl_lib import paper
from cassl_lib.resolve import resolve


def test_rows_and_columns_are_the_papers(config):
    cells = cells_of(4, config)
    assert list(cells) == list(paper.TABLE4) and unprinted(4, config) == set()
    assert all(list(cells[row]) == list(printed) for row, printed in paper.TABLE4.items())


def test_lengths_are_fifths_of_the_warm_up_and_thirds_of_finetuning(config):
    cells = cells_of(4, config)
    request = cells["2x"]["4x"].request
    assert request.config.finetune.steps == round(1200 * 2 / 3) and request.input.config.warmup.steps == 2800
    default = cells_of(2, config)["Objects (P,A)"]["finetuned det AP"].request
    assert cells["3x"]["5x"].request == default
    assert runs_by_stage(4, config) == {"pseudo_labeler": 1, "pseudo_labels": 1, "warmup": 5, "finetune": 25}


def test_a_coarser_profile_leaves_cells_out():
    demo = resolve(profile="demo")
    assert {row: sorted(cells) for row, cells in cells_of(4, demo).items()} == {
        "1x": ["1x", "3x", "5x"], "2x": [], "3x": ["1x", "3x", "5x"], "4x": [], "5x": ["1x", "3x", "5x"]
    }  # fmt: skip
