"""Runs the app while the allocation guard knows that it is the app: what is left last belongs to the server.

On an event loop the app and the server take turns on one thread, so that each step of the app's coroutine is marked.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

from resource_monitor.guard import IN_APP, IN_SERVER, place

_T = TypeVar("_T")


@types.coroutine
def as_app(app: Coroutine[Any, Any, _T]) -> Generator[Any, Any, _T]:
    """Await ``app`` with each of its steps marked as the app's; what it returns."""
    here = place()
    value: Any = None
    error: BaseException | None = None
    while True:
        here[0] = IN_APP
        try:
            if error is None:
                waits_for = app.send(value)
            else:
                waits_for, error = app.throw(error), None
        except StopIteration as end:
            returned: _T = end.value
            return returned
        finally:
            here[0] = IN_SERVER
        try:
            value = yield waits_for
        except BaseException as thrown:
            error = thrown


class app_runs:  # noqa: N801 - reads like a function; a class costs half of what a generator does
    """Mark what this thread does in the block as the app's."""

    __slots__ = ()

    def __enter__(self) -> None:
        place()[0] = IN_APP

    def __exit__(self, *error: object) -> None:
        place()[0] = IN_SERVER


class server_runs:  # noqa: N801 - as app_runs
    """Mark what this thread does in the block, within a step of the app's, as the server's: an answer that was begun is
    finished."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        here = place()
        self._before = here[0]
        here[0] = IN_SERVER

    def __exit__(self, *error: object) -> None:
        place()[0] = self._before
