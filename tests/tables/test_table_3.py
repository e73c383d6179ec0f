"""Table 3: epochs of the warm-up."""

from table_requests import cells_of, runs_by_stage, unprinted

from cassl_lib import paper
from cassl_lib.resolve import resolve
from cassl_lib.stages.requests import warmup


def test_rows_and_columns_are_the_papers(config):
    assert list(cells_of(3, config)) == list(paper.TABLE3) and unprinted(3, config) == set()


def test_rows_are_fifths_of_the_profiles_warm_up_on_the_same_labels(config):
    requests = [cells["AP"].request for cells in cells_of(3, config).values()]
    assert [request.config.warmup.steps for request in requests] == [700, 1400, 2100, 2800, 3500]
    assert requests[-1] == warmup(config)
    assert runs_by_stage(3, config) == {"pseudo_labeler": 1, "pseudo_labels": 1, "warmup": 5}


def test_at_the_paper_profile_rows_have_the_printed_epochs():
    for row, cells in cells_of(3, resolve(profile="paper")).items():
        assert cells["AP"].request.config.warmup.epochs == float(row.split()[0])


def test_a_coarser_profile_leaves_rows_empty():
    cells = cells_of(3, resolve(profile="demo"))
    assert [bool(row) for row in cells.values()] == [True, False, True, False, True]
