"""Files that evaluation reads end in one line that says where a field has a wrong type."""

import json

import pytest

from cassl_lib.errors import DataError
from cassl_lib.evaluation import evaluate
from cassl_lib.evaluation.labels import read_ground_truth

TRUTH = {
    "images": [{"id": 3, "file_name": "a.jpg", "height": 20, "width": 30}],
    "annotations": [{"id": 1, "image_id": 3, "category_id": 5, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}],
    "categories": [{"id": 5, "name": "cat"}],
}
RESULT = {"image_id": 3, "category_id": 5, "bbox": [1, 1, 4, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "3"}, r"\[0\].image_id .*: expected an integer, got a string"),
        ({"category_id": 5.5}, r"\[0\].category_id \(image_id 3\): expected an integer"),
        ({"score": None}, r"\[0\].score \(image_id 3\): expected a number, got null"),
        ({"bbox": [1, 1, 4]}, r"\[0\].bbox \(image_id 3\): expected a list of length 4"),
    ],
)
def test_a_results_file_with_a_wrong_type_is_named(tmp_path, change, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([RESULT | change]))
    with pytest.raises(DataError, match=f"results.json: {message}"):
        evaluate(path, TRUTH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 4}, r"annotations\[0\] \(id 1\) has the image_id 4, which the JSON does not list"),
        ({"category_id": "5"}, r"annotations\[0\].category_id \(id 1\): expected an integer, got a string"),
        ({"bbox": [1, 1, None, 4]}, r"annotations\[0\].bbox\[2\] \(id 1\): expected a number, got null"),
    ],
)
def test_a_ground_truth_file_with_a_wrong_field_is_named(tmp_path, change, message):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(TRUTH | {"annotations": [TRUTH["annotations"][0] | change]}))
    with pytest.raises(DataError, match=f"truth.json: {message}"):
        evaluate([RESULT], path)
    with pytest.raises(DataError, match=f"truth.json: {message}"):
        read_ground_truth([path])
