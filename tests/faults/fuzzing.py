"""What the fuzzers share: how an attempt ends, and the table of the ends."""

from __future__ import annotations

import collections
import itertools
import random
import resource
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import tensorflow as tf

from amaml_tf.errors import TOLD

T = TypeVar("T")

#: Seconds after which an attempt counts as slow.
SLOW = 60.0


def chained(first: Iterable[T], then: Iterable[T]) -> Iterator[T]:
    """Yields the elements of two sources, one after the other."""
    return itertools.chain(first, then)


def told(sentence: str) -> str:
    """Returns the end of an attempt that was refused, if with one sentence."""
    whole = (
        sentence.startswith(("Expected", "amaml: Expected", "Adaptation failed"))
        and "\n" not in sentence
        and len(sentence) < 2000
    )
    return "told" if whole else f"traceback: no sentence: {sentence[:300]!r}"


def outcome(attempt: Callable[..., str], *arguments: object) -> str:
    """Returns how an attempt ends: "sound", "told", "slow" or "traceback: WHAT"."""
    start = time.monotonic()
    try:
        end = attempt(*arguments)
    except TOLD as error:
        end = told(str(error))
    except (MemoryError, tf.errors.ResourceExhaustedError):
        end = "told"  # commands tell it, see commands/running.py
    except Exception as error:  # noqa: BLE001 - to find these is what a fuzzer is for
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename.rsplit('/', 3)[-1]}:{last.lineno}"
        end = f"traceback: {type(error).__name__} at {where}: {' '.join(str(error).split()):.200}"
    return "slow" if time.monotonic() - start > SLOW else end


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Returns data with some damage: bytes changed, cut, repeated, put in or exchanged."""
    bytes_of = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = rng.randrange(len(bytes_of) + 1)
        end = min(len(bytes_of), at + rng.choice([1, 1, 2, 4, 16, 64]))
        kind = rng.randrange(6)
        if kind == 0 and at < len(bytes_of):
            bytes_of[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del bytes_of[at:end]
        elif kind == 2:
            del bytes_of[at:]
        elif kind == 3:
            bytes_of[at:at] = rng.randbytes(end - at)
        elif kind == 4:
            bytes_of[at:at] = bytes_of[at:end] * rng.choice([1, 3])
        elif kind == 5:
            bytes_of[at:end] = rng.choice(
                [b"\0", b"\xff", b"-", b"9", b'"', b",", b"\n", b"\xef\xbb\xbf"]
            )
    return bytes(bytes_of)


def report(what: str, counts: collections.Counter[str], seconds: float) -> None:
    """Prints a row of the table: inputs by their ends, the time and the largest memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    ends = ", ".join(f"{count} {end}" for end, count in counts.most_common())
    print(f"| {what} | {counts.total()} | {ends} | {seconds:.0f} s | {peak:.2f} GiB |")
