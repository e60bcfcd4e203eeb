"""Sentences about a run that a user should see, whatever else is printed."""

from __future__ import annotations

import contextlib
import sys


def tell(sentence: str) -> None:
    """Prints a sentence to the standard error stream, if there is still one to print to."""
    with contextlib.suppress(OSError, ValueError):  # a terminal that is gone; a closed stream
        print(sentence, file=sys.stderr, flush=True)
