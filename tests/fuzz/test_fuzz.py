"""Damaged inputs of every kind: each is read rightly or refused in one line, soon and with little memory.

`CASSL_FUZZ_CASES` sets the number of cases of each kind (`make fuzz CASES=5000`), `CASSL_FUZZ_ONLY` runs one alone.
"""

from __future__ import annotations

import os
from collections import Counter

import annotation_kinds
import file_kinds
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from isolated import outcomes

CASES = int(os.environ.get("CASSL_FUZZ_CASES", 300))
ONLY = os.environ.get("CASSL_FUZZ_ONLY")
SHOWN = 20  # failures in a message
KINDS = {
    "instances": annotation_kinds.instances,
    "keypoints": annotation_kinds.keypoints,
    "results": annotation_kinds.results,
    "labels": annotation_kinds.labels,
    "panoptic": annotation_kinds.panoptic,
    "pool_index": file_kinds.pool_index,
    "manifest": file_kinds.manifest,
    "config": file_kinds.config,
    "recorded": file_kinds.recorded,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_rightly_or_refused_in_one_line(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", str(tmp_path / "runs"))
    strategy, check = KINDS[kind](tmp_path)

    def run_cases(attempt) -> None:
        @settings(
            max_examples=CASES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def each(case):
            attempt(lambda: check(case))

        each()

    found = outcomes(run_cases, only=int(ONLY) if ONLY else None)
    states = Counter(outcome.state for outcome in found)
    print(f"{kind}: {dict(states)}")
    failures = [f"case {each.number}: {each.state}: {each.detail[:300]}" for each in found if each.failed]
    assert not failures, f"{len(failures)} of {len(found)} cases of {kind}\n" + "\n".join(failures[:SHOWN])
    assert ONLY or {"accepted", "refused"} <= states.keys() and len(found) >= 0.9 * CASES
