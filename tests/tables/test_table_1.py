"""Table 1: quality gap of pseudo labels."""

import pytest
from table_requests import cells_of, needed, runs_by_stage, unprinted

from cassl_lib import paper
from cassl_lib.tables import compare

SPECIFIC, AGNOSTIC = "class-specific AP", "class-agnostic AP"


def test_rows_and_columns_are_the_papers(config):
    assert list(cells_of(1, config)) == list(paper.TABLE1) and unprinted(1, config) == set()


def test_the_same_detector_is_trained_on_ground_truth_and_on_its_own_pseudo_labels(config):
    human, pseudo = cells_of(1, config).values()
    for column, with_classes in ((SPECIFIC, True), (AGNOSTIC, False)):
        labeler, warmup = human[column].request, pseudo[column].request
        assert (labeler.stage, warmup.stage) == ("pseudo_labeler", "warmup")
        assert warmup.input.input == labeler and labeler.config.class_specific == with_classes
        assert human[column].kind == pseudo[column].kind == ("box" if with_classes else "box_agnostic")
    assert runs_by_stage(1, config) == {"pseudo_labeler": 2, "pseudo_labels": 2, "warmup": 2}
    assert {request.config.annotation for request in needed(1, config)} == {"objects"}


def test_gaps_pair_numbers_of_the_same_seed():
    """By hand: seed 0 (50 - 40) - (60 - 58) = 8; seed 1 has no class-agnostic number on ground truth."""
    names = (SPECIFIC, AGNOSTIC)
    ground_truth = ({"0": 0.5, "1": 0.6}, {"1": None, "0": 0.6})
    pseudo = ({"0": 0.4, "1": 0.3}, {"0": 0.58, "1": 0.2})
    rows = {
        "COCO train2017": dict(zip(names, ground_truth, strict=True)),
        "COCO unlabeled": dict(zip(names, pseudo, strict=True)),
    }
    (claim,) = compare.claims({1: {"rows": rows}}, 1)
    assert claim.differences == pytest.approx([8])
