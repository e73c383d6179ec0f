"""Table 7: scale of the unlabeled images."""

from dataclasses import replace

import pytest
from table_requests import cells_of, runs_by_stage, unprinted

from cassl_lib import paper
from cassl_lib.errors import ConfigError


def test_rows_and_columns_are_the_papers(config):
    assert list(cells_of(7, config)) == list(paper.TABLE7) and unprinted(7, config) == set()


def test_rows_differ_in_the_pool_alone(config):
    cells = cells_of(7, config)
    warmups = [row["warm-up entity AP"].request for row in cells.values()]
    assert [each.input.config.split for each in warmups] == ["tiny", "small", "base", "large"]
    assert [row["finetuned det AP"].request.input for row in cells.values()] == warmups
    assert runs_by_stage(7, config) == {"pseudo_labeler": 1, "pseudo_labels": 4, "warmup": 4, "finetune": 4}


def test_a_pool_of_your_own_has_no_splits_to_compare(config):
    with pytest.raises(ConfigError, match="unlabeled='pictures': Table 7 compares the four splits; leave it out"):
        cells_of(7, replace(config, unlabeled="pictures"))
