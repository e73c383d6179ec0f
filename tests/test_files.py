"""Files in shared folders: links are not followed, leftovers of dead processes go, a full disk is told in one line."""

import contextlib
import errno
import os
import platform
import resource
import time

import pytest

from cassl_lib import files
from cassl_lib.errors import DiskFull
from cassl_lib.evaluation.results import ResultWriter

DEAD, ALIVE = 2**22 - 3, os.getppid()  # process ids


@contextlib.contextmanager
def largest_file(size: int):
    """What a full disk is like: no file may be larger than this."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# ---- links ----


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("content")
    (tmp_path / ".lock").symlink_to("precious")
    with pytest.raises(OSError, match=r"\.lock"), files.alone(tmp_path):
        raise AssertionError("not reached")
    assert (tmp_path / "precious").read_text() == "content"


def test_results_that_are_a_link_are_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("content")
    name = ResultWriter(tmp_path).path
    name.unlink()
    name.symlink_to("precious")
    with pytest.raises(OSError, match="symbolic links"):
        ResultWriter(tmp_path)
    assert (tmp_path / "precious").read_text() == "content"


def test_temporary_names_cannot_be_predicted_and_are_never_links(tmp_path, monkeypatch):
    names = set()
    for _ in range(3):
        with files.replacing(tmp_path / "result.json") as file:
            names.add(file.name)
    assert len(names) == 3 and all(f".{os.getpid()}." in name for name in names)
    # Even one who knows the name gains nothing
    (tmp_path / "precious").write_text("content")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0" * 16)
    guessed = tmp_path / f".result.json.{platform.node()}.{os.getpid()}.{'0' * 16}.tmp"
    guessed.symlink_to("precious")
    with pytest.raises(FileExistsError):
        files.write_atomically(tmp_path / "result.json", b"new")
    assert (tmp_path / "precious").read_text() == "content"


def test_a_file_that_is_a_link_is_replaced_and_what_it_points_to_is_kept(tmp_path):
    (tmp_path / "precious").write_text("content")
    (tmp_path / "result.json").symlink_to("precious")
    files.write_atomically(tmp_path / "result.json", b"new")
    assert (tmp_path / "precious").read_text() == "content" and not (tmp_path / "result.json").is_symlink()


# ---- leftovers ----


def test_leftovers_of_dead_processes_are_swept_before_the_first_write(tmp_path):
    node, token = platform.node(), "0123456789abcdef"
    go = [f".a.json.{node}.{DEAD}.{token}.tmp", f".a.json.{node}.{DEAD}.123.tmp", f".a.json.other.host.1.{token}.tmp"]
    stay = [f".a.json.{node}.{ALIVE}.{token}.tmp", f".a.json.another.{DEAD}.{token}.tmp", ".own.tmp", "a.1.2.tmp"]
    for name in (*go, *stay):
        (tmp_path / name).write_text("half")
    (tmp_path / f".folder.{node}.{DEAD}.{token}.tmp").mkdir()
    (tmp_path / f".folder.{node}.{DEAD}.{token}.tmp" / "file").write_text("half")
    old = time.time() - files.ABANDONED_AFTER - 60
    os.utime(tmp_path / go[2], (old, old))
    files.write_atomically(tmp_path / "b.json", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*stay, "b.json"])


def test_a_leftover_that_is_a_link_to_a_folder_is_removed_alone(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("content")
    link = tmp_path / f".a.{platform.node()}.{DEAD}.0123456789abcdef.tmp"
    link.symlink_to("precious")
    files.sweep(tmp_path)
    assert not link.is_symlink() and (tmp_path / "precious" / "file").read_text() == "content"


# ---- full disks ----


def test_a_full_disk_names_file_space_and_remedy_and_leaves_no_partial_file(tmp_path):
    path = tmp_path / "model.safetensors"
    files.write_atomically(path, b"old")
    with largest_file(1000), pytest.raises(DiskFull) as caught:
        files.write_atomically(path, bytes(5000))
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be written: ") and "\n" not in message
    assert f"MB free on {tmp_path}. Free disk space and rerun the same command to resume." in message
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_results_that_do_not_fit_are_deleted(tmp_path):
    with largest_file(1000), pytest.raises(DiskFull, match=r"results.* cannot be written: .*MB free"):
        with ResultWriter(tmp_path / "results") as writer:
            for image_id in range(100):
                writer.add(image_id, [{"image_id": image_id, "score": 0.5}])
    assert not list((tmp_path / "results").iterdir())


def test_an_interrupt_and_another_error_leave_no_partial_file(tmp_path):
    for error in (KeyboardInterrupt, ZeroDivisionError, PermissionError(errno.EACCES, "no")):
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            with files.replacing(tmp_path / "a") as file:
                file.write(b"half")
                raise error
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            with files.folder_beside(tmp_path / "a") as folder:
                (folder / "half").write_text("half")
                raise error
    assert not list(tmp_path.iterdir())


# ---- without locks ----


def test_a_file_system_without_locks_is_said_once_per_folder(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    for name in ("one.lock", "two.lock"):
        with files.locked(tmp_path / name, wait=False) as held:
            assert held
    assert caplog.text.count("does not support locks") == 1 and str(tmp_path) in caplog.text
