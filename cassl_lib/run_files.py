"""What the files of a run hold: `result.json`, which marks it as finished, and `request.json`, its identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from cassl_lib import typed_json

Metrics = dict[str, float | int | None]  # AP and others of one kind of detection


class Category(TypedDict):
    id: int
    name: str


class Result(TypedDict):
    """What is read of a result; it may hold more."""

    run: str
    stage: str
    inputs: dict[str, str]
    metrics: dict[str, Metrics | float | int | str | None]
    seconds: float
    images: int
    environment: dict[str, str]
    steps: NotRequired[int]
    classes: NotRequired[list[str]]
    categories: NotRequired[list[Category] | None]
    unreadable: NotRequired[list[str]]
    unreadable_validation: NotRequired[list[str]]


class Identity(TypedDict):
    """What is read of a request; see `stages/identity.py` for the rest."""

    stage: str
    inputs: dict[str, str]


def read_result(file: Path) -> dict[str, Any]:
    """The content of a result.json.

    Raises:
        DataError: it is damaged; the message names the file, the place and the remedy.
    """
    return typed_json.read(file, Result, "delete it and run the same command again")


def read_request(file: Path) -> dict[str, Any]:
    """The content of a request.json.

    Raises:
        DataError: it is missing or damaged.
    """
    return typed_json.read(file, Identity, "delete this run and run the same command again")
