"""What differs between asyncio and trio, which hypercorn runs apps on: which of them runs, sleeping, and giving up.

trio is imported only where it runs, and so is there already.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


def running_loop() -> asyncio.AbstractEventLoop | None:
    """asyncio's loop, or ``None`` under trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def sleep(seconds: float) -> None:
    """Sleep under either."""
    if running_loop() is not None:
        await asyncio.sleep(seconds)
    else:
        import trio

        await trio.sleep(seconds)


@asynccontextmanager
async def at_most(seconds: float) -> AsyncIterator[None]:
    """Give up what the block does after ``seconds``, and go on after it."""
    if running_loop() is not None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                yield
    else:
        import trio

        with trio.move_on_after(seconds):
            yield
