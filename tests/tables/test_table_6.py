"""Table 6: weak and strong augmentation."""

from table_requests import cells_of, needed, runs_by_stage, unprinted

from cassl_lib import paper


def test_rows_and_columns_are_the_papers(config):
    assert list(cells_of(6, config)) == list(paper.TABLE6) and unprinted(6, config) == set()


def test_warm_up_and_finetuning_are_augmented_independently(config):
    cells = cells_of(6, config)
    mixed = cells["strong"]["weak, finetuned det AP"].request
    assert (mixed.config.augment.kind, mixed.input.config.augment.kind) == ("strong", "weak")
    requests = needed(6, config)
    assert {each.config.augment.kind for each in requests if each.stage == "pseudo_labeler"} == {"weak"}
    assert runs_by_stage(6, config) == {"pseudo_labeler": 1, "pseudo_labels": 1, "warmup": 2, "finetune": 4}
