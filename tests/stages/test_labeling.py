"""Labeling by processes that come, go and die: what they leave is the store that one undisturbed process makes."""

import errno
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api

from cassl_lib import paths, runs
from cassl_lib.data import datasets
from cassl_lib.data.pool.build import Pool, build_pool
from cassl_lib.errors import DataError, LabelingError, MissingRun, PseudoLabelError
from cassl_lib.evaluation.rle import edges_of, edges_on_device, encode_masks
from cassl_lib.labels.shards import finished_shards
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.resolve import resolve
from cassl_lib.runs import Run, find_run
from cassl_lib.stages import all_stages as stages
from cassl_lib.stages import labeling

SHARDS = 4  # of 4 images


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = resolve(profile="smoke")
    config = replace(config, labeler=replace(config.labeler, steps=30, checkpoint_every=100))
    config = replace(config, model=replace(config.model, score_threshold=0.01))
    return replace(config, label=replace(config.label, keep=0.1, shard_size=4, batch_size=3))


@pytest.fixture(scope="module")
def labeler(config, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASSL_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield stages.train_labeler(config)


@pytest.fixture(scope="module")
def pool(config, labeler):
    return datasets.pool(config)


@pytest.fixture(scope="module")
def whole(config, labeler, pool, tmp_path_factory) -> Path:
    """The store of one undisturbed process."""
    store = tmp_path_factory.mktemp("whole")
    stages.label_into(store, labeler, pool, config)
    assert PseudoLabelStore(store).manifest["labels"] > 16 and len(finished_shards(store)) == SHARDS
    return store


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


def dies(work) -> None:
    """Run `work` in a forked process, which has to be killed by itself."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def die_at(function: str, call: int, monkeypatch) -> None:
    """Have this process killed when it calls `os.<function>` for the n-th time, before anything is done."""
    original, calls = getattr(os, function), []

    def count(*args):
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    monkeypatch.setattr(os, function, count)


# Every file is written aside, synced and put in its place: the request, each shard and its entry, the manifest.
@pytest.mark.parametrize("call", range(1, 2 * SHARDS + 3))
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_killed_at_any_point_the_same_command_makes_the_same_store(
    function, call, config, labeler, pool, whole, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        die_at(function, call, patch)
        dies(lambda: stages.label_into(tmp_path, labeler, pool, config))
    finished = {path: path.stat().st_ino for n in finished_shards(tmp_path) for path in tmp_path.glob(f"shard-*{n}.*")}
    assert len(finished_shards(tmp_path)) == max(0, (call - 2) // 2)  # at most the shard in progress is lost
    assert not (tmp_path / "manifest.json").exists()
    with pytest.raises(PseudoLabelError, match="run the labeling again, it continues"):
        PseudoLabelStore(tmp_path)
    stages.label_into(tmp_path, labeler, pool, config)
    assert contents(tmp_path) == contents(whole)
    assert {path: path.stat().st_ino for path in finished} == finished  # nothing finished was made again
    assert not list(tmp_path.glob("*.tmp"))  # nor does half a file take room


HOLD = """
import sys
from cassl_lib.cli import main
from cassl_lib.stages import labeling
def hold(*args, **kwargs):
    print("holding", flush=True)
    sys.stdin.read()
labeling.write_shard = hold
__main__.main(sys.argv[1:])
"""


def command(config, labeler, pool_folder: Path, store: Path) -> list[str]:
    images = ["label", "--run", str(labeler.folder), "--images", str(pool_folder), "--out", str(store)]
    return [*images, "--shard-size", "4", "--keep", "0.1", "--batch-size", "3"]


def test_of_two_processes_one_dies_and_the_other_does_its_part(config, labeler, pool, tmp_path):
    arguments = command(config, labeler, pool.image_path(0).parent, tmp_path / "store")
    run = {"cwd": paths.REPOSITORY, "text": True, "stdout": subprocess.PIPE}
    first = subprocess.Popen([sys.executable, "-c", HOLD, *arguments], stdin=subprocess.PIPE, **run)
    assert first.stdout.readline() == "holding\n"  # it has labeled its first shard and not written it
    second = subprocess.Popen([sys.executable, "-m", "cassl_lib", *arguments], stderr=subprocess.PIPE, **run)
    done = [second.stderr.readline() for _ in range(SHARDS - 1)]
    assert [line.partition(".")[0] for line in done] == ["shard-00001", "shard-00002", "shard-00003"]
    assert "12 of 16 images" in done[-1] and "images/s" in done[-1] and " left" in done[-1]
    assert second.poll() is None and sorted(finished_shards(tmp_path / "store")) == [1, 2, 3]
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    output, errors = second.communicate(timeout=120)
    assert second.returncode == 0 and "shard-00000.arrow: 16 of 16 images" in errors
    assert "16 images" in output and "-p labels" in output
    alone = tmp_path / "alone"
    undisturbed = command(config, labeler, pool.image_path(0).parent, alone)
    subprocess.run([sys.executable, "-m", "cassl_lib", *undisturbed], cwd=paths.REPOSITORY, check=True)
    assert contents(tmp_path / "store") == contents(alone)


def test_who_comes_when_all_is_done_finds_it(config, labeler, pool, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.glob("shard-*")}

    def load():
        raise AssertionError("no model is needed")

    samples = stages.Samples(pool, None, masks=False, classes=False)
    settings = stages.label_settings(config)
    labeling.label_pool(load, samples, whole, config=config, labeler=labeler.id, settings=settings)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_full_disk_stops_with_what_to_do_and_loses_nothing(config, labeler, pool, whole, tmp_path):
    size = max(path.stat().st_size for path in whole.glob("*.arrow"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_after_the_second(entry):
        if entry["shard"] == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))

    try:
        with pytest.raises(LabelingError, match="2 shards are finished and whole. Make room and run the same command"):
            stages.label_into(tmp_path, labeler, pool, config, log=fill_after_the_second)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(finished_shards(tmp_path)) == [0, 1] and not list(tmp_path.glob("*.tmp"))
    stages.label_into(tmp_path, labeler, pool, config)
    assert contents(tmp_path) == contents(whole)


def test_a_disk_that_is_full_from_the_start_is_said_too(config, labeler, pool, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        with pytest.raises(LabelingError, match="0 shards are finished and whole. Make room"):
            stages.label_into(tmp_path, labeler, pool, config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_file_system_without_locks_is_no_obstacle(config, labeler, pool, whole, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(runs.fcntl, "flock", flock)
    stages.label_into(tmp_path, labeler, pool, config)
    assert contents(tmp_path) == contents(whole)


def test_what_a_living_process_is_writing_stays(config, labeler, pool, tmp_path):
    node, alive = platform.node(), os.getppid()
    gone = 2**22 - 3
    stay = [f".shard-00000.arrow.{node}.{alive}.{gone}.tmp", ".shard-00000.arrow.another-machine.1.1.tmp"]
    go = [f".{name}.{node}.{gone}.{alive}.tmp" for name in ("shard-00000.json", "request.json", "manifest.json")]
    for name in (*stay, *go):
        (tmp_path / name).write_bytes(b"half")
    stages.label_into(tmp_path, labeler, pool, config)
    assert sorted(path.name for path in tmp_path.glob(".*.tmp")) == sorted(stay)


def test_a_log_that_was_cut_short_does_no_harm(tmp_path):
    run = Run(tmp_path)
    run.log({"shard": 0, "seconds": 1.5})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"shard": 1, "sec')
    run.log({"shard": 2, "seconds": 2.0})
    assert [entry["shard"] for entry in run.history] == [0, 2] and labeling.image_seconds(run.history) == 3.5


def test_a_run_from_elsewhere_under_another_name_is_refused(labeler, tmp_path):
    """Its labels would be taken for those of the run that has this name."""
    shutil.copytree(labeler.folder, tmp_path / "model")
    with pytest.raises(MissingRun, match=f"model was renamed; its run is {labeler.id}"):
        find_run(str(tmp_path / "model"))
    shutil.copytree(labeler.folder, tmp_path / labeler.id)
    assert find_run(str(tmp_path / labeler.id)).id == labeler.id


def test_a_store_begun_otherwise_is_refused_before_any_work(config, labeler, pool, whole):
    other = replace(config, label=replace(config.label, keep=0.2))
    with pytest.raises(LabelingError, match="was begun with keep 0.1, not 0.2"):
        stages.label_into(whole, labeler, pool, other)
    with pytest.raises(LabelingError, match="was begun with shard_size 4, not 5"):
        stages.label_into(whole, labeler, pool, replace(config, label=replace(config.label, shard_size=5)))


def test_images_that_came_later_do_not_cost_what_is_labeled(config, labeler, tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    images = tmp_path / "images"
    images.mkdir()
    for gray in range(3):
        Image.new("L", (96, 64), gray).save(images / f"{gray}.png")
    first, _ = build_pool([str(images)], paths.runs() / "pools")
    stages.label_into(tmp_path / "store", labeler, first, config)
    Image.new("L", (96, 64), 3).save(images / "3.png")
    later, _ = build_pool([str(images)], paths.runs() / "pools")
    with pytest.raises(LabelingError, match=f"go on with --images {first.index}, the images that were there then"):
        stages.label_into(tmp_path / "store", labeler, later, config)
    stages.label_into(tmp_path / "store", labeler, Pool(first.index), config)
    shutil.rmtree(first.index.parent)
    with pytest.raises(LabelingError, match="bring back the images that were there then, label into another folder"):
        stages.label_into(tmp_path / "store", labeler, later, config)


def test_a_pool_of_which_nothing_can_be_read_makes_no_store(config, labeler, tmp_path, monkeypatch):
    """Else its finished, empty shards would stay when the images come back."""
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    for root in ("first", "second"):
        monkeypatch.setenv("CASSL_DATASETS", str(tmp_path / root))
        (tmp_path / root / "pool").mkdir(parents=True)
        Image.new("L", (96, 64), 7).save(tmp_path / root / f"pool/{root}.png")
    pool, _ = build_pool([str(tmp_path / "second/pool")], tmp_path / "index")
    monkeypatch.setenv("CASSL_DATASETS", str(tmp_path / "first"))  # it has such a folder, without this image
    with pytest.raises(LabelingError, match="none of 1 images can be read, such as pool/second.png .*CASSL_DATASETS"):
        stages.label_into(tmp_path / "store", labeler, pool, config)
    monkeypatch.setenv("CASSL_DATASETS", str(tmp_path / "third"))
    with pytest.raises(DataError, match="second.png: No such file .* no fault of this one image"):
        stages.label_into(tmp_path / "store", labeler, pool, config)
    monkeypatch.setenv("CASSL_DATASETS", str(tmp_path / "second"))
    stages.label_into(tmp_path / "store", labeler, pool, config)
    assert len(PseudoLabelStore(tmp_path / "store")) == 1


def test_a_shard_of_which_nothing_can_be_read_is_not_written(config, labeler, tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    (tmp_path / "images").mkdir()
    for gray in range(40):
        Image.new("L", (96, 64), gray).save(tmp_path / f"images/{gray:02}.png")
    pool, _ = build_pool([str(tmp_path / "images")], tmp_path / "index")
    for gray in range(20, 40):
        (tmp_path / f"images/{gray:02}.png").unlink()
    half = replace(config, label=replace(config.label, shard_size=20))
    with pytest.raises(LabelingError, match="no image of shard 1 can be read, such as .*20.png .No such file"):
        stages.label_into(tmp_path / "store", labeler, pool, half)
    assert sorted(finished_shards(tmp_path / "store")) == [0]


def test_a_shard_of_another_pool_is_not_taken_for_one_of_this(config, labeler, pool, whole, tmp_path):
    """Such as one gathered from another machine, by the same labeler."""
    shutil.copytree(whole, tmp_path / "store")
    other = replace(config, label=replace(config.label, keep=0.2))
    stages.label_into(tmp_path / "other", labeler, pool, other)
    for ending in ("arrow", "json"):
        shutil.copy(tmp_path / f"other/shard-00002.{ending}", tmp_path / "store")
    with pytest.raises(PseudoLabelError, match="shard-00002.arrow is of another pool .*: take it and shard-00002.json"):
        stages.label_into(tmp_path / "store", labeler, pool, config)
    for path in (tmp_path / "store").glob("shard-00002.*"):
        path.unlink()
    stages.label_into(tmp_path / "store", labeler, pool, config)
    assert contents(tmp_path / "store").items() >= contents(whole).items()


def test_a_damaged_shard_is_made_anew(config, labeler, pool, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "store")
    shard = tmp_path / "store/shard-00001.arrow"
    content = bytearray(shard.read_bytes())
    content[-900] ^= 1
    shard.write_bytes(content)
    with pytest.raises(PseudoLabelError, match="delete it and label again, it is made anew"):
        PseudoLabelStore(tmp_path / "store").verify()
    shard.unlink()
    with pytest.raises(PseudoLabelError, match="shard-00001.arrow is missing .* label again"):
        PseudoLabelStore(tmp_path / "store")
    stages.label_into(tmp_path / "store", labeler, pool, config)
    assert contents(tmp_path / "store") == contents(whole)


def test_keep_is_the_lowest_score_that_is_stored(config, labeler, pool, tmp_path, monkeypatch):
    """Also below what the detector gives by itself, which here is made sqrt(0.09)."""
    original = stages.load_model

    def load(run):
        model = original(run)
        model.config = replace(model.config, score_threshold=0.09)
        return model

    monkeypatch.setattr(stages, "load_model", load)
    found = {}
    for keep in (None, 0.2, 0.34):
        kept = replace(config, label=replace(config.label, keep=keep))
        stages.label_into(tmp_path / str(keep), labeler, pool, kept)
        found[keep] = PseudoLabelStore(tmp_path / str(keep), threshold=0.0)
    lowest = {keep: min(item["scores"].min(initial=1) for item in labels) for keep, labels in found.items()}
    assert 0.3 <= lowest[None] < 0.31 and 0.2 <= lowest[0.2] < 0.21 and 0.34 <= lowest[0.34] < 0.35
    for index in range(len(pool)):
        strong = [labels.at(0.34)[index] for labels in found.values()]
        assert all((other["boxes"] == strong[0]["boxes"]).all() for other in strong)
        assert all((other["scores"] == strong[0]["scores"]).all() for other in strong)


def test_without_a_bar_a_line_tells_how_far_it_is(config, labeler, pool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(labeling, "SAYS_EVERY", 0.0)
    monkeypatch.setattr(labeling.distributed, "quiet", lambda rank: True)
    stages.label_into(tmp_path, labeler, pool, config)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(pool) + SHARDS and lines[0].startswith("labeling: 1 of 16 images, ")
    assert lines[-1].startswith("shard-00003.arrow: 16 of 16 images, ") and lines[-1].endswith(" images/s, 00:00 left")


def test_too_little_room_is_said_after_the_first_shard(config, labeler, pool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(labeling.shutil, "disk_usage", lambda place: type("Disk", (), {"free": 1000})())
    stages.label_into(tmp_path, labeler, pool, config)
    assert capsys.readouterr().err.count("are free on its disk; it will stop") == 1


def test_images_of_any_size_share_batches_and_rows_stay_in_order(config, labeler, tmp_path, monkeypatch):
    sizes = [(96, 40), (40, 96), (90, 44), (50, 50), (44, 90), (120, 50), (60, 61)]
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (40 * number, 90, 200)).save(tmp_path / f"{number}.png")
    own = replace(config, unlabeled=str(tmp_path), label=replace(config.label, batch_size=3, keep=0.0))
    samples = stages.Samples(
        datasets.pool(own), stages.test_transform(own.augment), masks=False, classes=False, replace=False
    )
    seen = []
    model = stages.load_model(labeler)
    original = model.predict
    monkeypatch.setattr(model, "predict", lambda images, **at: seen.append(at["sizes"]) or original(images, **at))
    rows = labeling.image_rows(model, samples, range(7), own)
    assert [(row["width"], row["height"]) for row in rows] == sizes and [row["image_id"] for row in rows] == [
        *range(1, 8)
    ]
    # (height, width), narrow ones first: 40/96, 44/90, 60/61 | 50/50, 90/44, 120/50 and 96/40 by their proportions
    assert seen == [[(96, 40), (90, 44), (61, 60)], [(50, 50), (44, 90), (40, 96)], [(50, 120)]]
    for row in rows:
        assert (row["boxes"][:, 2] <= row["width"]).all() and (row["boxes"][:, 3] <= row["height"]).all()


def test_an_image_replaced_by_one_of_another_size_is_named_and_not_labeled(config, labeler, tmp_path, monkeypatch):
    """Its boxes would be put into the frame of the image that the index knows."""
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    (tmp_path / "images").mkdir()
    for gray, name in enumerate("abc"):
        Image.new("L", (96, 64), gray).save(tmp_path / "images" / f"{name}.png")
    pool, _ = build_pool([str(tmp_path / "images")], tmp_path / "index")
    Image.new("RGB", (64, 96)).save(tmp_path / "images/b.png")
    stages.label_into(tmp_path / "store", labeler, pool, config)
    labels = PseudoLabelStore(tmp_path / "store")
    assert [Path(labels.file_name(n)).name for n in range(len(labels))] == ["a.png", "c.png"]
    assert labels.unreadable == [f"{tmp_path / 'images/b.png'} (96x64 pixels, listed as 64x96)"]


def test_run_lengths_are_those_of_pycocotools():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(40, 7, 11, generator=generator) < torch.linspace(0, 1, 40)[:, None, None]
    masks[0], masks[1] = False, True
    masks[2] = False
    masks[2, :, 3:6] = True  # whole columns: one run
    masks[3] = False
    masks[3, -2:, 4], masks[3, :3, 5] = True, True  # one run over the foot of a column
    for given in (masks, masks.to(torch.uint8), masks[:1], masks[:, :1], masks[:, :, :1], masks[1:2, :1, :1]):
        expected = mask_api.encode(np.asfortranarray(given.to(torch.uint8).permute(1, 2, 0).numpy()))
        assert encode_masks(given) == expected
        assert [each.tolist() for each in edges_on_device(given)] == [
            [edge for edge in each.tolist() if edge < given[0].numel()] for each in edges_of(given.numpy())
        ]
    assert encode_masks(masks[:0]) == []


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--run", "nothing"], "'nothing' is no run"),
        (["--images", "/no/such/folder"], "/no/such/folder: no such"),
        (["--keep", "2"], "--keep 2.0 is out of range; use 0 to 1"),
        (["--shard-size", "100000"], "--shard-size 100000 is out of range; use 1 to 50,000"),
        (["--batch-size", "0"], "--batch-size 0 is out of range"),
    ],
)
def test_a_wrong_word_in_the_shell_ends_at_once(wrong, message, config, labeler, pool, tmp_path, capsys):
    from cassl_lib.cli.main import main

    arguments = command(config, labeler, pool.image_path(0).parent, tmp_path / "store")
    assert main([*arguments, *wrong]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_what_fails_in_a_loading_process_is_one_line_too(config, labeler, tmp_path, monkeypatch, capsys):
    from cassl_lib.cli.main import main

    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    (tmp_path / "images").mkdir()
    Image.new("L", (96, 64), 7).save(tmp_path / "images/a.png")
    pool, _ = build_pool([str(tmp_path / "images")], tmp_path / "index")
    shutil.rmtree(tmp_path / "images")
    monkeypatch.setattr(labeling, "_load_checked", lambda load, samples: load())
    arguments = command(config, labeler, pool.index, tmp_path / "store")
    assert main([*arguments, "--workers", "1"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / 'images/a.png'}: No such file") and "goes on" in error


def test_a_store_goes_into_a_folder_of_its_own(config, labeler, pool, tmp_path, capsys):
    from cassl_lib.cli.main import main

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("important")
    for out, message in (("mine", "is no store and not empty (thesis.tex)"), ("mine/thesis.tex", "is a file")):
        assert main(command(config, labeler, pool.image_path(0).parent, tmp_path / out)) == 2
        assert f"--out {tmp_path / out} {message}" in capsys.readouterr().err
