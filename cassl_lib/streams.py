"""Seeds of independent random streams: every stage, and every use in it, draws from a stream of its own."""

from __future__ import annotations

import hashlib


def stream(*names: int | str) -> int:
    """A 63-bit seed for the stream of these names, such as (seed, "warmup", "weights").

    Hashed, so that neighboring seeds and positions get unrelated random streams.
    """
    text = "/".join(map(str, names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
