"""Labeling with processes that come, go and die: the result is the store of one uninterrupted process."""

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

from cassl_lib import files, paths
from cassl_lib.data import augment, datasets
from cassl_lib.data.loader import Samples
from cassl_lib.data.pool.build import Pool, build_pool
from cassl_lib.errors import DataError, LabelingError, MissingRun, PseudoLabelError
from cassl_lib.evaluation.rle import edges_of, edges_on_device, encode_masks
from cassl_lib.labels.shards import finished_shards
from cassl_lib.labels.store import PseudoLabelStore
from cassl_lib.resolve import resolve
from cassl_lib.runs import Run, find_run
from cassl_lib.stages import labeling, labeling_progress, pseudo_labels, requests
from cassl_lib.stages.graph import obtain
from cassl_lib.stages.models import load_detector
from cassl_lib.stages.pseudo_labels import label_into, label_settings

SHARDS = 4  # of 4 images


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = resolve(profile="smoke")
    return replace(
        config,
        model=replace(config.model, score_threshold=0.01),
        pseudo_labeler=replace(config.pseudo_labeler, steps=30, checkpoint_every=100),
        pseudo_labels=replace(config.pseudo_labels, keep=0.1, shard_size=4, batch_size=3),
    )


@pytest.fixture(scope="module")
def labeler(config, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASSL_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield obtain(requests.pseudo_labeler(config))


@pytest.fixture(scope="module")
def pool(config, labeler):
    return datasets.pool(config)


@pytest.fixture(scope="module")
def whole(config, labeler, pool, tmp_path_factory) -> Path:
    """The store of one uninterrupted process."""
    store = tmp_path_factory.mktemp("whole")
    label_into(store, labeler, pool, config)
    assert PseudoLabelStore(store).manifest["labels"] > 16 and len(finished_shards(store)) == SHARDS
    return store


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


def dies(work) -> None:
    """Run `work` in a forked process that must end by SIGKILL."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def die_at(function: str, call: int, monkeypatch) -> None:
    """Kill this process just before its n-th call of `os.<function>`."""
    original, calls = getattr(os, function), []

    def count(*args):
        calls.append(args)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    monkeypatch.setattr(os, function, count)


# Every file is written to a temporary file, synced and renamed: the request, each shard and its entry, the manifest.
@pytest.mark.parametrize("call", range(1, 2 * SHARDS + 3))
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_killed_at_any_point_the_same_command_resumes_to_the_same_store(
    function, call, config, labeler, pool, whole, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        die_at(function, call, patch)
        dies(lambda: label_into(tmp_path, labeler, pool, config))
    finished = {path: path.stat().st_ino for n in finished_shards(tmp_path) for path in tmp_path.glob(f"shard-*{n}.*")}
    assert len(finished_shards(tmp_path)) == max(0, (call - 2) // 2)  # at most the shard in progress is lost
    assert not (tmp_path / "manifest.json").exists()
    with pytest.raises(PseudoLabelError, match="Rerun the labeling to resume"):
        PseudoLabelStore(tmp_path)
    label_into(tmp_path, labeler, pool, config)
    assert contents(tmp_path) == contents(whole)
    assert {path: path.stat().st_ino for path in finished} == finished  # finished shards were not rewritten
    assert not list(tmp_path.glob("*.tmp"))  # temporary files were deleted


HOLD = """
import sys
from cassl_lib.cli.main import main
from cassl_lib.stages import labeling
def hold(*args, **kwargs):
    print("holding", flush=True)
    sys.stdin.read()
labeling.write_shard = hold
main(sys.argv[1:])
"""


def command(config, labeler, pool_folder: Path, store: Path) -> list[str]:
    images = ["label", "--run", str(labeler.folder), "--images", str(pool_folder), "--out", str(store)]
    return [*images, "--shard-size", "4", "--keep", "0.1", "--batch-size", "3"]


def test_of_two_processes_one_dies_and_the_other_takes_over(config, labeler, pool, tmp_path):
    arguments = command(config, labeler, pool.image_path(0).parent, tmp_path / "store")
    run = {"cwd": paths.REPOSITORY, "text": True, "stdout": subprocess.PIPE}
    first = subprocess.Popen([sys.executable, "-c", HOLD, *arguments], stdin=subprocess.PIPE, **run)
    assert first.stdout.readline() == "holding\n"  # its first shard is labeled but not written
    second = subprocess.Popen([sys.executable, "-m", "cassl_lib", *arguments], stderr=subprocess.PIPE, **run)
    done = [second.stderr.readline() for _ in range(SHARDS - 1)]
    assert [line.partition(".")[0] for line in done] == ["shard-00001", "shard-00002", "shard-00003"]
    assert "12 of 16 images" in done[-1] and "images/s" in done[-1] and " left" in done[-1]
    assert second.poll() is None and sorted(finished_shards(tmp_path / "store")) == [1, 2, 3]
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    output, errors = second.communicate(timeout=120)
    assert second.returncode == 0 and "shard-00000.arrow: 16 of 16 images" in errors
    assert "16 images" in output and "-p store" in output
    alone = tmp_path / "alone"
    undisturbed = command(config, labeler, pool.image_path(0).parent, alone)
    subprocess.run([sys.executable, "-m", "cassl_lib", *undisturbed], cwd=paths.REPOSITORY, check=True)
    assert contents(tmp_path / "store") == contents(alone)


def test_a_finished_store_needs_no_detector(config, labeler, pool, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.glob("shard-*")}

    def load():
        raise AssertionError("no detector is needed")

    samples = Samples(pool, None, masks=False, classes=False)
    labeling.label_pool(
        load,
        samples,
        whole,
        label=config.pseudo_labels,
        train=config.pseudo_labeler,
        labeler=labeler.id,
        settings=label_settings(config),
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_full_disk_stops_with_a_remedy_and_loses_nothing(config, labeler, pool, whole, tmp_path):
    size = max(path.stat().st_size for path in whole.glob("*.arrow"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_after_the_second(entry):
        if entry["shard"] == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))

    try:
        with pytest.raises(
            LabelingError,
            match="shard-00002.arrow cannot be .* Free disk space and rerun .* 2 shards are finished and kept",
        ):
            label_into(tmp_path, labeler, pool, config, log=fill_after_the_second)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(finished_shards(tmp_path)) == [0, 1] and not list(tmp_path.glob("*.tmp"))
    label_into(tmp_path, labeler, pool, config)
    assert contents(tmp_path) == contents(whole)


def test_a_disk_that_is_full_from_the_start_is_named(config, labeler, pool, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        with pytest.raises(LabelingError, match="MB free on .*. Free disk space .* 0 shards are finished and kept"):
            label_into(tmp_path, labeler, pool, config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_labeling_works_on_a_file_system_without_locks(config, labeler, pool, whole, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    label_into(tmp_path, labeler, pool, config)
    assert contents(tmp_path) == contents(whole)


def test_temporary_files_of_running_processes_are_kept(config, labeler, pool, tmp_path):
    node, alive = platform.node(), os.getppid()
    gone = 2**22 - 3
    stay = [f".shard-00000.arrow.{node}.{alive}.{gone}.tmp", ".shard-00000.arrow.another-machine.1.1.tmp"]
    go = [f".{name}.{node}.{gone}.{alive}.tmp" for name in ("shard-00000.json", "request.json", "manifest.json")]
    for name in (*stay, *go):
        (tmp_path / name).write_bytes(b"half")
    label_into(tmp_path, labeler, pool, config)
    assert sorted(path.name for path in tmp_path.glob(".*.tmp")) == sorted(stay)


def test_a_truncated_line_of_the_log_is_skipped(tmp_path):
    run = Run(tmp_path)
    run.log({"shard": 0, "seconds": 1.5})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"shard": 1, "sec')
    run.log({"shard": 2, "seconds": 2.0})
    assert [entry["shard"] for entry in run.history] == [0, 2] and labeling.image_seconds(run.history) == 3.5


def test_a_renamed_run_raises(labeler, tmp_path):
    """Its labels would pass for those of the run of that name."""
    shutil.copytree(labeler.folder, tmp_path / "model")
    with pytest.raises(MissingRun, match=f"model was renamed, its run is {labeler.id}"):
        find_run(str(tmp_path / "model"))
    shutil.copytree(labeler.folder, tmp_path / labeler.id)
    assert find_run(str(tmp_path / labeler.id)).id == labeler.id


def test_a_store_begun_with_other_settings_raises_before_any_work(config, labeler, pool, whole):
    other = replace(config, pseudo_labels=replace(config.pseudo_labels, keep=0.2))
    with pytest.raises(LabelingError, match="was begun with keep 0.1, not 0.2"):
        label_into(whole, labeler, pool, other)
    with pytest.raises(LabelingError, match="was begun with shard_size 4, not 5"):
        label_into(whole, labeler, pool, replace(config, pseudo_labels=replace(config.pseudo_labels, shard_size=5)))


def test_a_store_can_be_finished_after_images_were_added(config, labeler, tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    images = tmp_path / "images"
    images.mkdir()
    for gray in range(3):
        Image.new("L", (96, 64), gray).save(images / f"{gray}.png")
    first = build_pool([str(images)], paths.runs() / "pools")
    label_into(tmp_path / "store", labeler, first, config)
    Image.new("L", (96, 64), 3).save(images / "3.png")
    later = build_pool([str(images)], paths.runs() / "pools")
    with pytest.raises(
        LabelingError, match=f"The pool has changed: resume the old one with --images {first.index}, label"
    ):
        label_into(tmp_path / "store", labeler, later, config)
    label_into(tmp_path / "store", labeler, Pool(first.index), config)
    shutil.rmtree(first.index.parent)
    with pytest.raises(LabelingError, match="The pool has changed: restore the old images, label into another folder"):
        label_into(tmp_path / "store", labeler, later, config)


def test_a_pool_without_readable_images_makes_no_store(config, labeler, tmp_path, monkeypatch):
    """Otherwise its empty shards would count as finished when the images are back."""
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    for root in ("first", "second"):
        monkeypatch.setenv("CASSL_DATASETS", str(tmp_path / root))
        (tmp_path / root / "pool").mkdir(parents=True)
        Image.new("L", (96, 64), 7).save(tmp_path / root / f"pool/{root}.png")
    pool = build_pool([str(tmp_path / "second/pool")], tmp_path / "index")
    monkeypatch.setenv("CASSL_DATASETS", str(tmp_path / "first"))  # it has this folder, but not this image
    with pytest.raises(LabelingError, match="none of 1 images can be read, such as pool/second.png .*CASSL_DATASETS"):
        label_into(tmp_path / "store", labeler, pool, config)
    monkeypatch.setenv("CASSL_DATASETS", str(tmp_path / "third"))
    with pytest.raises(DataError, match="second.png: No such file .* not a damaged image"):
        label_into(tmp_path / "store", labeler, pool, config)
    monkeypatch.setenv("CASSL_DATASETS", str(tmp_path / "second"))
    label_into(tmp_path / "store", labeler, pool, config)
    assert len(PseudoLabelStore(tmp_path / "store")) == 1


def test_a_shard_without_readable_images_is_not_written(config, labeler, tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    (tmp_path / "images").mkdir()
    for gray in range(40):
        Image.new("L", (96, 64), gray).save(tmp_path / f"images/{gray:02}.png")
    pool = build_pool([str(tmp_path / "images")], tmp_path / "index")
    for gray in range(20, 40):
        (tmp_path / f"images/{gray:02}.png").unlink()
    half = replace(config, pseudo_labels=replace(config.pseudo_labels, shard_size=20))
    with pytest.raises(
        LabelingError, match="shard-00001.arrow: none of its 20 images can be read, such as .*20.png .No such file"
    ):
        label_into(tmp_path / "store", labeler, pool, half)
    assert sorted(finished_shards(tmp_path / "store")) == [0]


def test_a_shard_of_another_request_raises(config, labeler, pool, whole, tmp_path):
    """Such as one copied from another machine, made by the same labeler."""
    shutil.copytree(whole, tmp_path / "store")
    other = replace(config, pseudo_labels=replace(config.pseudo_labels, keep=0.2))
    label_into(tmp_path / "other", labeler, pool, other)
    for ending in ("arrow", "json"):
        shutil.copy(tmp_path / f"other/shard-00002.{ending}", tmp_path / "store")
    with pytest.raises(
        PseudoLabelError, match="shard-00002.arrow: made from another pool .* Move it and shard-00002.json"
    ):
        label_into(tmp_path / "store", labeler, pool, config)
    for path in (tmp_path / "store").glob("shard-00002.*"):
        path.unlink()
    label_into(tmp_path / "store", labeler, pool, config)
    assert contents(tmp_path / "store").items() >= contents(whole).items()


def test_a_damaged_shard_is_rewritten(config, labeler, pool, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "store")
    shard = tmp_path / "store/shard-00001.arrow"
    content = bytearray(shard.read_bytes())
    content[-900] ^= 1
    shard.write_bytes(content)
    with pytest.raises(PseudoLabelError, match="Delete it and label again to rewrite it"):
        PseudoLabelStore(tmp_path / "store").verify()
    shard.unlink()
    with pytest.raises(PseudoLabelError, match="shard-00001.arrow is missing .* Label again"):
        PseudoLabelStore(tmp_path / "store")
    label_into(tmp_path / "store", labeler, pool, config)
    assert contents(tmp_path / "store") == contents(whole)


def test_keep_is_the_lowest_score_that_is_stored(config, labeler, pool, tmp_path, monkeypatch):
    """Also below the detector's own limit, which is sqrt(0.09) here."""
    original = pseudo_labels.load_detector
    monkeypatch.setattr(
        pseudo_labels,
        "load_detector",
        lambda run, score_threshold=0.09: original(run, score_threshold=score_threshold),
    )
    stores = {}
    for keep in (None, 0.2, 0.34):
        kept = replace(config, pseudo_labels=replace(config.pseudo_labels, keep=keep))
        label_into(tmp_path / str(keep), labeler, pool, kept)
        stores[keep] = PseudoLabelStore(tmp_path / str(keep), threshold=0.0)
    lowest = {keep: min(item["scores"].min(initial=1) for item in labels) for keep, labels in stores.items()}
    assert 0.3 <= lowest[None] < 0.31 and 0.2 <= lowest[0.2] < 0.21 and 0.34 <= lowest[0.34] < 0.35
    for index in range(len(pool)):
        strong = [labels.at(0.34)[index] for labels in stores.values()]
        assert all((other["boxes"] == strong[0]["boxes"]).all() for other in strong)
        assert all((other["scores"] == strong[0]["scores"]).all() for other in strong)


def test_without_a_progress_bar_the_progress_is_logged(config, labeler, pool, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(labeling_progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(labeling_progress.distributed, "quiet", lambda rank: True)
    with caplog.at_level("INFO", labeling_progress.logger.name):
        label_into(tmp_path, labeler, pool, config)
    lines = [record.getMessage() for record in caplog.records if record.name == labeling_progress.logger.name]
    assert len(lines) == len(pool) + SHARDS and lines[0].startswith("labeling: 1 of 16 images, ")
    assert lines[-1].startswith("shard-00003.arrow: 16 of 16 images, ") and lines[-1].endswith(" images/s, 00:00 left")


@pytest.mark.parametrize("hidden", [False, True])
def test_too_little_disk_space_is_warned_of_once(hidden, config, labeler, pool, tmp_path, monkeypatch, capsys, caplog):
    """Above the progress bar if one is shown, else in the log."""
    monkeypatch.setattr(labeling_progress.shutil, "disk_usage", lambda place: type("Disk", (), {"free": 1000})())
    monkeypatch.setattr(labeling_progress.distributed, "quiet", lambda rank: hidden)
    label_into(tmp_path, labeler, pool, config)
    text = caplog.text if hidden else capsys.readouterr().err
    assert text.count("are free on its disk. Labeling stops") == 1


def test_images_of_any_size_share_batches_and_rows_keep_their_order(config, labeler, tmp_path, monkeypatch):
    sizes = [(96, 40), (40, 96), (90, 44), (50, 50), (44, 90), (120, 50), (60, 61)]
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (40 * number, 90, 200)).save(tmp_path / f"{number}.png")
    own = replace(config, unlabeled=str(tmp_path), pseudo_labels=replace(config.pseudo_labels, batch_size=3, keep=0.0))
    samples = Samples(
        datasets.pool(own), augment.test_transform(own.augment), masks=False, classes=False, replace=False
    )
    seen = []
    model = load_detector(labeler)
    original = model.predict
    monkeypatch.setattr(model, "predict", lambda images, **at: seen.append(at["sizes"]) or original(images, **at))
    rows = labeling.image_rows(model, samples, range(7), label=own.pseudo_labels, train=own.pseudo_labeler)
    assert [(row["width"], row["height"]) for row in rows] == sizes and [row["image_id"] for row in rows] == [
        *range(1, 8)
    ]
    # (height, width) by width / height: 40/96, 44/90, 60/61 | 50/50, 90/44, 96/40 | 120/50
    assert seen == [[(96, 40), (90, 44), (61, 60)], [(50, 50), (44, 90), (40, 96)], [(50, 120)]]
    for row in rows:
        assert (row["boxes"][:, 2] <= row["width"]).all() and (row["boxes"][:, 3] <= row["height"]).all()


def test_an_image_replaced_by_one_of_another_size_is_listed_as_unreadable(config, labeler, tmp_path, monkeypatch):
    """Its boxes would be in the frame of the image that the index lists."""
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    (tmp_path / "images").mkdir()
    for gray, name in enumerate("abc"):
        Image.new("L", (96, 64), gray).save(tmp_path / "images" / f"{name}.png")
    pool = build_pool([str(tmp_path / "images")], tmp_path / "index")
    Image.new("RGB", (64, 96)).save(tmp_path / "images/b.png")
    label_into(tmp_path / "store", labeler, pool, config)
    labels = PseudoLabelStore(tmp_path / "store")
    assert [Path(labels.file_name(n)).name for n in range(len(labels))] == ["a.png", "c.png"]
    assert labels.unreadable == [
        f"{tmp_path / 'images/b.png'} (96x64 pixels, listed as 64x96, height and width swapped)"
    ]


def test_rles_equal_those_of_pycocotools():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(40, 7, 11, generator=generator) < torch.linspace(0, 1, 40)[:, None, None]
    masks[0], masks[1] = False, True
    masks[2] = False
    masks[2, :, 3:6] = True  # whole columns: one run
    masks[3] = False
    masks[3, -2:, 4], masks[3, :3, 5] = True, True  # one run across the bottom of a column
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
        (["--run", "nothing"], "'nothing' is not a run"),
        (["--images", "/no/such/folder"], "/no/such/folder: no such"),
        (["--keep", "2"], "--keep 2.0 is out of range; use 0 to 1"),
        (["--shard-size", "100000"], "--shard-size 100000 is out of range; use 1 to 50,000"),
        (["--batch-size", "0"], "--batch-size 0 is out of range"),
    ],
)
def test_invalid_arguments_of_the_command_end_with_a_message(wrong, message, config, labeler, pool, tmp_path, capsys):
    from cassl_lib.cli.main import main

    arguments = command(config, labeler, pool.image_path(0).parent, tmp_path / "store")
    assert main([*arguments, *wrong]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_an_error_in_a_loading_process_is_printed_as_one_line(config, labeler, tmp_path, monkeypatch, capsys):
    from cassl_lib.cli.main import main

    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    (tmp_path / "images").mkdir()
    Image.new("L", (96, 64), 7).save(tmp_path / "images/a.png")
    pool = build_pool([str(tmp_path / "images")], tmp_path / "index")
    shutil.rmtree(tmp_path / "images")
    monkeypatch.setattr(labeling, "_load_checked", lambda load, samples: load())
    arguments = command(config, labeler, pool.index, tmp_path / "store")
    assert main([*arguments, "--workers", "1"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / 'images/a.png'}: No such file") and "to resume" in error


def test_a_store_needs_a_folder_of_its_own(config, labeler, pool, tmp_path, capsys):
    from cassl_lib.cli.main import main

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("important")
    for out, message in (("mine", "is not a store and not empty (thesis.tex)"), ("mine/thesis.tex", "is a file")):
        assert main(command(config, labeler, pool.image_path(0).parent, tmp_path / out)) == 2
        assert f"--out {tmp_path / out} {message}" in capsys.readouterr().err
