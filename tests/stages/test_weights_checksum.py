"""Damaged weights of a finished run are never used."""

import json
import shutil
from pathlib import Path

import pytest

from cassl_lib.errors import MissingRun, WeightsError
from cassl_lib.files import sha256
from cassl_lib.predictor import Predictor
from cassl_lib.resolve import resolve
from cassl_lib.runs import Run, find_run
from cassl_lib.stages import requests
from cassl_lib.stages.graph import obtain
from cassl_lib.stages.models import load_detector, trained_weights


@pytest.fixture(scope="module")
def labeler(tmp_path_factory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASSL_RUNS", str(tmp_path_factory.mktemp("runs")))
        return obtain(requests.pseudo_labeler(resolve(profile="smoke")))


@pytest.fixture
def copy(labeler, tmp_path, monkeypatch) -> Run:
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path))
    return Run(Path(shutil.copytree(labeler.folder, tmp_path / labeler.id)))


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def test_a_result_holds_the_checksum_of_its_weights(labeler):
    assert labeler.result["weights_sha256"] == sha256(labeler.weights)


@pytest.mark.parametrize("damage", [flip_a_bit, cut, empty])
def test_damaged_weights_are_named_with_the_remedy_wherever_they_are_used(copy, damage):
    damage(copy.weights)
    for use in (load_detector, trained_weights, Predictor):
        with pytest.raises(WeightsError) as caught:
            use(find_run(copy.id))
        message = str(caught.value)
        assert message.startswith(f"{copy.weights} is damaged: ") and "\n" not in message
        assert message.endswith(f"Restore it, or delete {copy.folder} and make the run again.")


def test_finetuning_does_not_start_from_damaged_weights(copy):
    flip_a_bit(copy.weights)
    config = resolve(profile="smoke")
    with pytest.raises(WeightsError, match="does not have the checksum in result.json"):
        obtain(requests.finetune(config, copy))


def test_runs_without_a_checksum_still_load(copy):
    file = copy.folder / "result.json"
    result = json.loads(file.read_text())
    del result["weights_sha256"]
    file.write_text(json.dumps(result))
    assert trained_weights(copy).keys() == load_detector(copy).state_dict().keys()
    copy.weights.unlink()
    with pytest.raises(MissingRun, match="no such file"):
        trained_weights(copy)
