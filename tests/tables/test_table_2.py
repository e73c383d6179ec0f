"""Table 2: data of the warm-up."""

from table_requests import cells_of, needed, runs_by_stage, unprinted

from cassl_lib import paper
from cassl_lib.resolve import resolve

BOX = "finetuned det AP"


def test_rows_and_columns_are_the_papers(config):
    assert list(cells_of(2, config)) == list(paper.TABLE2)
    # The paper leaves these two out.
    assert unprinted(2, config) == {(row, "finetuned mask AP") for row in ("Objects (G,A)", "Objects (P,S)")}


def test_each_row_starts_from_other_data(config):
    cells = cells_of(2, config)
    tuned = {row: cells[row][BOX].request for row in cells}
    assert {row: request.start for row, request in tuned.items()} == {
        "ImageNet": "scratch",
        "Objects (G,A)": "pseudo_labeler",
        "Objects (P,S)": "warmup",
        "Objects (P,A)": "warmup",
        "Entities (P,A)": "warmup",
    }
    learned = {row: request.input.config for row, request in tuned.items() if request.input}
    assert {row: (each.annotation, each.class_specific) for row, each in learned.items()} == {
        "Objects (G,A)": ("objects", False),
        "Objects (P,S)": ("objects", True),
        "Objects (P,A)": ("objects", False),
        "Entities (P,A)": ("entities", False),
    }
    assert tuned["Objects (G,A)"].input == tuned["Objects (P,A)"].input.input.input
    assert cells["Entities (P,A)"]["entity AP"].request == tuned["Entities (P,A)"].input


def test_box_and_mask_ap_are_of_one_run_and_pq_of_another(config):
    for row, cells in cells_of(2, config).items():
        assert cells[BOX].request == cells["finetuned mask AP"].request
        assert ("finetuned PQ" in cells) == (row in ("ImageNet", "Objects (P,A)", "Entities (P,A)"))
        if "finetuned PQ" in cells:
            panoptic = cells["finetuned PQ"].request
            assert panoptic.config.target == "panoptic" and panoptic.inputs == cells[BOX].request.inputs
    assert runs_by_stage(2, config) == {
        "pseudo_labeler": 3,
        "pseudo_labels": 3,
        "warmup": 3,
        "baseline": 5,  # at the gpu profile three lengths of instances, two of things and stuff
        "finetune": 6,
    }


def test_box_only_tables_request_no_panoptic_run():
    requests = needed(2, resolve(profile="smoke", masks=False))
    assert all(request.config.target == "instances" for request in requests)
