"""Table 9: parts that are initialized from the warmed-up model."""

import pytest
from table_requests import cells_of, runs_by_stage, unprinted

from cassl_lib import paper
from cassl_lib.stages.requests import baseline, finetune, warmup


def test_rows_and_columns_are_the_papers(config):
    """And after them two options of finetuning that the paper does not have."""
    rows = list(cells_of(9, config))
    assert rows[:-2] == list(paper.TABLE9) and {row for row, _ in unprinted(9, config)} == set(rows[-2:])


def test_rows_copy_the_parts_that_they_name(config):
    nothing, *others, _, _ = cells_of(9, config).items()
    assert nothing[1]["AP"].request == baseline(config)
    for row, cells in others:
        assert ", ".join(cells["AP"].request.parts) == row and cells["AP"].request.input == warmup(config)
    assert dict(others)["backbone, neck, head"]["AP"].request == finetune(config)
    stages = {"pseudo_labeler": 1, "pseudo_labels": 1, "warmup": 1, "baseline": 3, "finetune": 6}
    assert runs_by_stage(9, config) == stages


def test_options_change_the_finetuning_alone(config):
    """Of the same warm-up, with the same parts."""
    *_, faster, bolder = (cells["AP"].request for cells in cells_of(9, config).values())
    assert (
        faster.config.finetune.fresh_rate == 4 and faster.config.finetune.learning_rate == config.finetune.learning_rate
    )
    assert bolder.config.finetune.learning_rate == pytest.approx(1.5 * config.finetune.learning_rate)
    assert bolder.config.finetune.weight_decay == pytest.approx(0.5 * config.finetune.weight_decay)
    for request in (faster, bolder):
        assert request.input == warmup(config) and request.parts == finetune(config).parts
