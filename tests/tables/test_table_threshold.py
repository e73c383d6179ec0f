"""The table of thresholds of the pseudo labels, which the paper does not have."""

from table_requests import cells_of, runs_by_stage

from cassl_lib.tables import compare
from cassl_lib.tables.definitions import ROWS


def test_the_threshold_decides_the_warm_up_and_not_its_labels(config):
    rows = ROWS["threshold"](config)
    warmups = [row.cells["warm-up entity AP"].request for row in rows]
    assert [each.config.pseudo_labels.threshold for each in warmups] == [float(row.name) for row in rows]
    assert len(set(warmups)) == 5 and len({each.input for each in warmups}) == 1
    assert compare.printed("threshold", "0.5", "finetuned det AP") is None


def test_each_warm_up_is_finetuned(config):
    cells = cells_of("threshold", config)
    for row in cells.values():
        assert row["finetuned det AP"].request.input == row["warm-up entity AP"].request
    assert runs_by_stage("threshold", config) == {"pseudo_labeler": 1, "pseudo_labels": 1, "warmup": 5, "finetune": 5}
