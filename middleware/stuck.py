"""The way out for a worker that cannot recover: memory leaked so far that nothing is let in, and nothing is in flight
whose end would free any. ``gate`` says what was refused; this owns when that is being stuck, and what is then done.

There is no thread and no timer, so that nothing is left behind by a fork: whenever a request is refused it is asked
whether that has gone on for too long. A service that is asked nothing is not stuck.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress

from resource_monitor.admission import Reason
from resource_monitor.errors import ConfigurationError

logger = logging.getLogger("resource_monitor")

OnStuck = str | Callable[[], object]
"""``"log"``, ``"stop"``, or what is called without arguments."""

# What a new process would have more of. A memory that cannot be read it could not read either, and what holds a request
# back while others are in flight ends with them.
_CURABLE = frozenset({Reason.MEMORY, Reason.COUNT})
# Refusals further apart than this share of ``stuck_after`` are no uninterrupted time: of a worker that gets few
# requests, for others take them, two unlucky ones say nothing about the time between.
_GAP = 1 / 2
# Workers that got stuck together stop within this share of ``stuck_after``, not all at once: the one that leaked may be
# the first, and then the others find room again.
_JITTER = 1 / 2


class Stuck:
    """Counts how long a worker has refused everything. Not thread-safe: whoever says :meth:`refused` holds a lock.

    ``after`` are seconds. Raises :class:`ConfigurationError` for an action that there is not, the option ``name``.
    """

    def __init__(self, on_stuck: OnStuck, after: float, name: str = "on_stuck") -> None:
        if (on_stuck not in ("log", "stop") and not callable(on_stuck)) or inspect.iscoroutinefunction(on_stuck):
            raise ConfigurationError(
                f"{name}={on_stuck!r} cannot be done; give 'log', 'stop', a function without arguments, or None."
            )
        self._action = on_stuck
        self._after = after
        self.forget()

    def forget(self) -> None:
        """Begin anew: in a child process, whose parent's refusals were not its own."""
        self._since = self._last = -math.inf
        self._patience = self._admitted = -1.0
        self._acted = False

    def refused(self, reason: Reason, now: float, *, in_flight: int, admitted: int) -> bool:
        """Note a refusal at ``now`` seconds, with so many requests in flight and ``admitted`` since the start; True
        when it is time to :meth:`act`, once in a time of being stuck."""
        if reason not in _CURABLE:
            return False
        interrupted = in_flight > 0 or admitted != self._admitted or now - self._last > _GAP * self._after
        self._last, self._admitted = now, admitted
        if interrupted:
            self._since = now
            self._patience = self._after * (1 + _JITTER * random.random() if self._action == "stop" else 1)
            # a worker that was told to stop is stopping, and a second signal would cut off what it still answers
            self._acted = self._acted and self._action == "stop"
        if self._acted or now - self._since < self._patience:
            return False
        self._acted = True
        return True

    def act(self) -> None:
        """Log it, and do what was asked for; call this without a lock."""
        stops = self._action == "stop"
        try:
            logger.error(
                "Stuck: for %.0f s every request was refused while nothing was in flight%s.",
                self._last - self._since,
                "; this worker stops, for its supervisor to replace it" if stops else "",
            )
            if callable(self._action):
                self._action()
        except Exception:  # it must not take the place of the refusal
            with suppress(MemoryError):
                logger.exception("Stuck: on_stuck failed.")
        finally:
            if stops:
                # what a supervisor sends as well: servers end what is in flight before they go
                os.kill(os.getpid(), signal.SIGTERM)


def stuck(
    on_stuck: OnStuck | None, after: float, *, name: str = "on_stuck", after_name: str = "stuck_after"
) -> Stuck | None:
    """What the options ask for, which their giver calls by these names; ``None`` for nothing.

    Raises :class:`ConfigurationError`.
    """
    if isinstance(after, bool) or not isinstance(after, int | float) or not 1 <= after <= 86400:
        raise ConfigurationError(f"{after_name}={after!r} is no time to be stuck for; give seconds, from 1 to 86400.")
    return None if on_stuck is None else Stuck(on_stuck, after, name)
