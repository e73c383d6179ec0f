"""The paper's numbers agree with each other: stated gaps and gains, cells shared by tables, sizes of pools."""

import json

import pytest

from cassl_lib import paper


def same(number):
    return pytest.approx(number, abs=1e-9)


def test_stated_gaps_are_differences_of_cells():
    ground_truth, pseudo = paper.TABLE1["COCO train2017"], paper.TABLE1["COCO unlabeled"]
    for kind in ("class-specific", "class-agnostic"):
        assert ground_truth[f"{kind} AP"] - pseudo[f"{kind} AP"] == same(paper.TEXT[f"table 1, {kind} gap"])
    objects, entities, specific = (paper.TABLE2[row] for row in ("Objects (P,A)", "Entities (P,A)", "Objects (P,S)"))
    gain = objects["finetuned det AP"] - specific["finetuned det AP"]
    assert gain == same(paper.TEXT["table 2, class-agnostic over class-specific"])
    gain = entities["finetuned PQ"] - objects["finetuned PQ"]
    assert gain == same(paper.TEXT["table 2, PQ of entities over objects"])
    gain = paper.TABLE9["backbone"]["AP"] - paper.TABLE9["nothing"]["AP"]
    assert gain == same(paper.TEXT["table 9, backbone alone"])


@pytest.mark.parametrize("name", paper.TABLE10)
def test_gains_of_table_10_are_differences_of_its_cells(name):
    row = paper.TABLE10[name]
    assert row["CA-SSL"] - row["ImageNet"] == same(row["gain"])


def test_table_8_holds_only_what_the_text_repeats():
    complete = {name: row for name, row in paper.TABLE8.items() if row["AP"] is not None}
    assert list(complete) == [name for name in paper.TABLE8 if name.startswith("CA-SSL, Swin")]
    for row in complete.values():
        assert row["AP"] - row["baseline"] == same(row["gain"])
    gains = {name: row["gain"] for name, row in paper.TABLE8.items() if name.startswith("Soft Teacher")}
    assert list(gains.values()) == [3.6, 2.5, 1.7]
    assert all(row["note"] for row in paper.TABLE8.values())
    assert len(paper.TABLE8) == 15


def test_cells_shared_by_tables_agree():
    for name in ("Objects (G,A)", "Objects (P,A)"):
        row = {"Objects (G,A)": "COCO train2017", "Objects (P,A)": "COCO unlabeled"}[name]
        assert paper.TABLE2[name]["cls-agnostic object box AP"] == paper.TABLE1[row]["class-agnostic AP"]
    assert paper.TABLE2["Objects (P,S)"]["cls-specific AP"] == paper.TABLE1["COCO unlabeled"]["class-specific AP"]
    warmed_up = {
        paper.TABLE2["Entities (P,A)"]["entity AP"],
        paper.TABLE3["60 (5x)"]["AP"],
        paper.TABLE5["warmed-up target detector"][-1],
        paper.TABLE6["weak"]["weak"]["warm-up entity AP"],
        paper.TABLE7["Tiny"]["warm-up entity AP"],
    }
    finetuned = {
        paper.TABLE2["Entities (P,A)"]["finetuned det AP"],
        paper.TABLE4["3x"]["5x"],
        paper.TABLE6["weak"]["weak"]["finetuned det AP"],
        paper.TABLE7["Tiny"]["finetuned det AP"],
    }
    assert (warmed_up, finetuned) == ({40.2}, {48.2})
    baseline, best = paper.TABLE9["nothing"], paper.TABLE9["backbone, neck, head, classifier"]
    assert (
        baseline["AP"] == paper.TABLE10["DET, FCOS"]["ImageNet"] == paper.TABLE2["ImageNet"]["finetuned det AP"] == 46.8
    )
    assert (
        best["AP"] == paper.TABLE10["DET, FCOS"]["CA-SSL"] == paper.TABLE8["CA-SSL, Swin-T-FCOS, 3.66M"]["AP"] == 51.5
    )


def test_claims_of_the_text_hold_in_the_tables():
    assert max(value for row in paper.TABLE4.values() for value in row.values()) == paper.TABLE4["3x"]["5x"]
    labeler, target = paper.TABLE5.values()
    assert list(target) == sorted(target) and all(0 < a - b < 2 for a, b in zip(labeler, target, strict=True))
    for column in ("warm-up entity AP", "finetuned det AP"):
        scale = [row[column] for row in paper.TABLE7.values()]
        assert scale == sorted(set(scale))
    assert all(len(row) == 5 for row in paper.TABLE4.values()) and len(paper.TABLE4) == 5
    parts = [sum(row[part] for part in ("backbone", "neck", "head", "classifier")) for row in paper.TABLE9.values()]
    assert parts == [0, 1, 2, 3, 4]


def test_pools_have_the_printed_sizes():
    """The paper prints thousands or ten thousands, truncated or rounded."""
    for name, row in paper.TABLE7.items():
        assert abs(paper.IMAGES[name.lower()] - row["images"]) < 10_000
    sources = paper.SOURCES
    assert paper.IMAGES["tiny"] == sources["coco_unlabeled"]
    assert paper.IMAGES["small"] == sources["coco_unlabeled"] + sources["places365"] * 3 // 10
    assert paper.IMAGES["large"] == sum(sources.values())
    assert round(paper.IMAGES["train"], -3) == paper.TABLE1["COCO train2017"]["images"]


def test_every_table_is_plain_data():
    tables = {f"TABLE{number}": getattr(paper, f"TABLE{number}") for number in range(1, 11)}
    assert json.loads(json.dumps(tables)) == tables
    assert paper.EPOCHS == {"warmup": 60, "finetune": 36} and "60 (5x)" in paper.TABLE3
