"""COCO results on disk during evaluation: each process appends to its own file, one line per image."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from cassl_lib.errors import DiskFull
from cassl_lib.files import explained, open_own, write_atomically


class ResultWriter:
    """Append the results of a process's images to its file in `folder`; leaving `with` without an error finishes it.

    A line is `{"image_id": ..., "results": [COCO result dicts]}` and is flushed at once, so that the results of a
    killed process can be inspected. Only finished files have an index beside them, and only those are read. A new
    writer overwrites the file of an earlier one with the same rank and world. On a full disk the file is deleted.

    Raises:
        DiskFull: from any of its methods.
    """

    def __init__(self, folder: str | Path, rank: int = 0, world: int = 1):
        self.path, self.index = _paths(Path(folder), rank, world)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.index.unlink(missing_ok=True)
        self._offsets: dict[int, int] = {}
        self._results = 0
        self._file = open_own(self.path, "wb")

    def add(self, image_id: int, results: list[dict]) -> None:
        """Append all results of one image, possibly none. RLE counts may be bytes.

        Raises:
            ValueError: the image was added before, or a result is for another image.
        """
        if image_id in self._offsets:
            raise ValueError(f"{self.path} already has the results of image {image_id}")
        if others := {result["image_id"] for result in results} - {image_id}:
            raise ValueError(f"the results of image {image_id} include some of image {min(others)}")
        line = json.dumps({"image_id": image_id, "results": results}, default=_text)
        self._offsets[image_id] = self._file.tell()
        self._results += len(results)
        with explained(self.path):
            self._file.write(line.encode() + b"\n")
            self._file.flush()

    def finish(self) -> None:
        """Close the file and write its index."""
        with explained(self.path):
            os.fsync(self._file.fileno())
        entry = {"bytes": self._file.tell(), "results": self._results}
        entry |= {"images": list(self._offsets), "offsets": list(self._offsets.values())}
        self._file.close()
        write_atomically(self.index, json.dumps(entry).encode())  # last: its presence means "finished"

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, error, *_) -> None:
        if error is None:
            self.finish()
        else:
            with contextlib.suppress(OSError):  # what does not fit on the disk is still to be written
                self._file.close()
        if error is not None and issubclass(error, DiskFull):
            self.path.unlink(missing_ok=True)


class StoredResults:
    """The results of all `world` processes as one iterable of COCO result dicts, sorted by image id.

    Can be iterated repeatedly, holds one image's results in memory at a time, and is accepted by `evaluate`.

    Raises:
        FileNotFoundError: a process has not finished its file.
        ValueError: a file changed after it was finished, or two processes have results of the same image.
    """

    def __init__(self, folder: str | Path, world: int = 1):
        self._files, self._positions, self._results = [], {}, 0  # positions: image id to rank and offset in its file
        for rank in range(world):
            path, index = _paths(Path(folder), rank, world)
            if not index.is_file():
                raise FileNotFoundError(
                    f"{path} is unfinished: process {rank} of {world} is still running or was killed"
                )
            entry = json.loads(index.read_bytes())
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise ValueError(f"{path} does not have the {entry['bytes']} bytes that were written")
            if twice := self._positions.keys() & set(entry["images"]):
                raise ValueError(f"{path} and another process's file both have results of image {min(twice)}")
            self._files.append(path)
            self._results += entry["results"]
            self._positions |= {
                image: (rank, offset) for image, offset in zip(entry["images"], entry["offsets"], strict=True)
            }

    @property
    def image_ids(self) -> list[int]:
        """All evaluated images, including those without results."""
        return sorted(self._positions)

    def __len__(self) -> int:
        return self._results

    def __iter__(self) -> Iterator[dict]:
        for image_id in self.image_ids:
            yield from self.of_image(image_id)

    def of_image(self, image_id: int) -> list[dict]:
        """The results of one image; empty for an image that was not evaluated."""
        if image_id not in self._positions:
            return []
        rank, offset = self._positions[image_id]
        with self._files[rank].open("rb") as file:
            file.seek(offset)
            return json.loads(file.readline())["results"]

    def remove(self) -> None:
        """Delete the files, and their folder if it is empty then."""
        for path in self._files:
            path.unlink()
            path.with_suffix(".index").unlink()
        folder = self._files[0].parent
        if not any(folder.iterdir()):
            folder.rmdir()


def _paths(folder: Path, rank: int, world: int) -> tuple[Path, Path]:
    path = folder / f"results-{rank:05d}-of-{world:05d}.jsonl"
    return path, path.with_suffix(".index")


def _text(value) -> str:
    """Counts of compressed RLE (ASCII bytes) as a JSON string."""
    if isinstance(value, bytes):
        return value.decode("ascii")
    raise TypeError(f"COCO results hold numbers, lists and RLE, not {type(value).__name__}")
