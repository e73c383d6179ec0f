"""Table 9: parts that are initialized from the warmed-up model."""

from table_requests import cells_of, runs_by_stage, unprinted

from cassl_lib import paper
from cassl_lib.stages.requests import baseline, finetune, warmup


def test_rows_and_columns_are_the_papers(config):
    assert list(cells_of(9, config)) == list(paper.TABLE9) and unprinted(9, config) == set()


def test_rows_copy_the_parts_that_they_name(config):
    nothing, *others = cells_of(9, config).items()
    assert nothing[1]["AP"].request == baseline(config)
    for row, cells in others:
        assert ", ".join(cells["AP"].request.parts) == row and cells["AP"].request.input == warmup(config)
    assert dict(others)["backbone, neck, head"]["AP"].request == finetune(config)
    stages = {"pseudo_labeler": 1, "pseudo_labels": 1, "warmup": 1, "baseline": 3, "finetune": 4}
    assert runs_by_stage(9, config) == stages
