"""What the matrix's apps have in common, but for how one waits under ASGI."""

import time
from collections.abc import Iterator
from typing import Any

from control import Control

MORE_THAN_THERE_IS = 1 << 50
"""Bytes that a request is said to cost, so that it is never let in."""
PIECE, PIECES = b"x" * 65536, 8
"""What is streamed, and how often."""


def released(control: Control) -> None:
    """Wait in this thread until the test lets go."""
    with control.held() as held:
        while held():
            time.sleep(0.005)


def pieces(control: Control) -> Iterator[bytes]:
    """A stream that waits after its first piece."""
    yield PIECE
    released(control)
    for _ in range(PIECES - 1):
        yield PIECE


def cost(environ: dict[str, Any]) -> int:
    """``/full`` is for refusals."""
    return MORE_THAN_THERE_IS if environ["PATH_INFO"] == "/full" else 0
