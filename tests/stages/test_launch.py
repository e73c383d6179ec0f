"""Several processes compute what one does; their failure and an interrupt reach whoever started them."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cassl_lib import paths
from cassl_lib.data import datasets
from cassl_lib.data.loader import Order
from cassl_lib.errors import DataError, LaunchError
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.resolve import from_json, resolve, to_json
from cassl_lib.runs import Run
from cassl_lib.stages import launch, requests
from cassl_lib.stages.graph import obtain, require

PATIENCE = 120  # seconds until a process that does nothing is a failure


@pytest.fixture(scope="module")
def config():
    """No BatchNorm, whose statistics are per process; SGD, because AdamW amplifies tiny differences."""
    plain = resolve(profile="smoke")
    model = replace(plain.model, backbone_norm="gn", head_norm="gn", mask_norm="gn", score_threshold=0.003)
    short = {"steps": 3, "log_every": 1, "optimizer": "sgd", "learning_rate": 0.02, "warmup_steps": 0}
    sections = {name: replace(getattr(plain, name), **short) for name in ("pseudo_labeler", "warmup", "finetune")}
    labels = replace(plain.pseudo_labels, keep=0.0, threshold=0.0, shard_size=3)  # six shards for two processes
    return replace(plain, model=model, pseudo_labels=labels, **sections)


@pytest.fixture(scope="module")
def own_data(config, tmp_path_factory):
    """The scenes, without objects in the images that the second process sees first, and the first one next."""
    labeled, val = datasets.labeled_set(config), datasets.validation_set(config)
    data = json.loads(labeled.path.read_text())
    order = list(Order(len(labeled), batch_size=8, start=0, stop=2, seed=config.seed))
    empty = {labeled.image_id(index) for step in (0, 1) for _, index in order[step][1 - step :: 2]}
    data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] not in empty]
    file = tmp_path_factory.mktemp("data") / "few.json"
    file.write_text(json.dumps(data))
    own = {name: f"{path}{os.pathsep}{images.folder}" for name, path, images in
           (("labeled", file, labeled), ("val", val.path, val))}  # fmt: skip
    pool = datasets.pool(config)
    return replace(config, **own, unlabeled=str(pool.image_path(0).parent))


def losses(run: Run) -> list[list[float]]:
    return [[value for name, value in entry.items() if name.startswith("loss_")] for entry in run.history]


def difference(first: Run, second: Run) -> float:
    one, two = load_file(first.weights), load_file(second.weights)
    return max((one[name] - two[name]).abs().max().item() for name in one)


def test_two_processes_compute_what_one_does(own_data, tmp_path, monkeypatch, capfd):
    """The whole chain: finetuning makes its inputs on the way, each with as many processes."""
    chains = []
    for devices in (1, 2):
        monkeypatch.setenv("CASSL_RUNS", str(tmp_path / f"{devices}"))
        run = obtain(requests.finetune(own_data), devices=devices)
        inputs = (requests.pseudo_labeler(own_data), requests.pseudo_labels(own_data), requests.warmup(own_data))
        chains.append([run, *map(require, inputs)])
    (tuned, labeler, labels, warmed), (tuned_2, labeler_2, labels_2, warmed_2) = chains
    assert [run.id for run in chains[0]] == [run.id for run in chains[1]]
    assert f"{tuned.id}: finetuning" in capfd.readouterr().out  # the processes' messages are passed on
    assert len(losses(labeler)) == 3 and all(min(step) > 0 for step in losses(labeler))
    # The same losses, up to sums in another order, though a process had no object at all in two of the steps
    for one, two in zip(losses(labeler), losses(labeler_2), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=2e-6)
    assert difference(labeler, labeler_2) < 1e-5
    stores = [PseudoLabelStore(run.store, threshold=0.0) for run in (labels, labels_2)]
    assert [stores[0].file_name(i) for i in range(16)] == [stores[1].file_name(i) for i in range(16)]
    counts = [store.manifest["labels"] for store in stores]
    assert counts[0] > 100 and abs(counts[0] - counts[1]) <= 0.02 * counts[0]  # a tie may be broken otherwise
    assert len(warmed.history) == len(warmed_2.history) == 3
    assert losses(tuned)[-1] == pytest.approx(losses(tuned_2)[-1], rel=1e-3)
    assert [run.result["images"] for run in chains[1]] == [16, 16, 16, 16]


def test_a_failing_process_is_an_error_with_its_message(config, tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path))
    steep = replace(config.pseudo_labeler, learning_rate=10.0, clip_norm=0.0, steps=50)
    diverging = replace(config, pseudo_labeler=steep)
    with pytest.raises(LaunchError, match=r"error: step \d+: .* on images"):
        obtain(requests.pseudo_labeler(diverging), devices=2)


def test_missing_data_are_an_error_before_any_process_starts(config, tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path))
    monkeypatch.setattr(launch, "torchrun", None)
    with pytest.raises(DataError, match="gone.json: no such annotation file"):
        obtain(requests.pseudo_labeler(replace(config, labeled=str(tmp_path / "gone.json"))), devices=2)


def test_the_last_messages_of_a_failed_process_are_kept(capfd):
    script = "import sys; [print('line', n) for n in range(200)]; sys.exit('out of memory')"
    with pytest.raises(LaunchError, match=r"exited with status 1:\n(line \d+\n)+out of memory") as caught:
        launch._stream([sys.executable, "-c", script])
    assert "line 199" in str(caught.value) and "line 3\n" not in str(caught.value)
    assert "line 0\n" in capfd.readouterr().out


def test_the_launched_command_means_the_request(config, monkeypatch):
    seen = {}

    def stream(command):
        file = command[command.index("--config") + 1]
        with open(file) as opened:
            seen["config"] = from_json(json.load(opened))
        seen["command"] = " ".join(command).replace(file, "FILE")
        raise LaunchError("enough")

    monkeypatch.setattr(launch, "_stream", stream)
    request = requests.finetune(config, Run(Path("/runs/pseudo_labeler-1")), parts=("backbone",))
    with pytest.raises(LaunchError, match="enough"):
        launch.torchrun(request, 4)
    assert seen["config"] == config
    assert (
        "-m cassl_lib.lifeline torch.distributed.run --standalone --nproc_per_node=4 -m -- cassl_lib run finetune"
        in seen["command"]
    )
    assert seen["command"].endswith("--config FILE --input /runs/pseudo_labeler-1 --parts backbone")
    with pytest.raises(LaunchError, match="enough"):
        launch.torchrun(requests.baseline(config), 4)
    assert seen["command"].endswith("--config FILE --start scratch")


def of_this_test(folder: Path) -> list[int]:
    """The processes whose runs are in `folder`, those that were adopted too."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"CASSL_RUNS={folder}\0".encode() in environment.read_bytes():  # empty for those that have ended
                found.append(int(environment.parent.name))
    return sorted(set(found) - {os.getpid()})


@pytest.mark.parametrize("stopped_by", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_or_a_kill_stops_all_processes(stopped_by, config, tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path))
    endless = replace(config, pseudo_labeler=replace(config.pseudo_labeler, steps=100_000))
    (tmp_path / "endless.json").write_text(json.dumps(to_json(endless)))
    # Where the tests run in a shell's background, interrupts are ignored; not here.
    script = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += "from cassl_lib.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "run", "pseudo_labeler", "--devices", "2"]
    with (tmp_path / "output").open("w+") as output:
        process = subprocess.Popen(
            [*command, "--config", str(tmp_path / "endless.json")], cwd=paths.REPOSITORY, stdout=output, stderr=output
        )
        deadline = time.monotonic() + PATIENCE
        while not (logs := list(tmp_path.glob("pseudo_labeler-*/log.jsonl"))):  # both processes train
            output.seek(0)
            assert process.poll() is None and time.monotonic() < deadline, output.read()
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        lock = logs[0].parent / "lock"
        assert len(of_this_test(tmp_path)) >= 4  # this one's child, torchrun, and its two
        process.send_signal(stopped_by)
        assert process.wait(PATIENCE) != 0
        output.seek(0)
        assert ("stopped; rerun the same command to resume" in output.read()) == (stopped_by == signal.SIGINT)
    while left := of_this_test(tmp_path):  # at once after an interrupt, soon after a kill
        assert stopped_by == signal.SIGKILL and time.monotonic() < deadline + PATIENCE, left
        time.sleep(0.1)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not Run(lock.parent).finished
