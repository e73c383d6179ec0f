"""Table 5: strength of the pseudo labeler."""

from table_requests import cells_of, runs_by_stage, unprinted

from cassl_lib import paper
from cassl_lib.stages.requests import pseudo_labeler, warmup


def test_rows_and_columns_are_the_papers(config):
    cells = cells_of(5, config)
    assert list(cells) == list(paper.TABLE5) and unprinted(5, config) == set()
    assert all(list(row) == list("12345") for row in cells.values())


def test_each_warm_up_is_on_the_labels_of_its_own_labeler(config):
    labelers, warmups = cells_of(5, config).values()
    for fifths in range(1, 6):
        labeler, warmed_up = labelers[str(fifths)].request, warmups[str(fifths)].request
        assert labeler.config.pseudo_labeler.steps == 400 * fifths
        assert warmed_up.input.input == labeler and warmed_up.config.warmup.steps == 3500
    assert labelers["5"].request == pseudo_labeler(config) and warmups["5"].request == warmup(config)
    assert runs_by_stage(5, config) == {"pseudo_labeler": 5, "pseudo_labels": 5, "warmup": 5}
