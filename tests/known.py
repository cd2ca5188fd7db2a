"""Classes of requests that are not new any more, and what of them is in flight."""

from resource_monitor.admission import Admission, Learned, Route


def known(
    unseen: float = 0.0, *, floor: float | None = None, rate: float | None = None, window: float | None = None
) -> Route:
    """A class of which nothing is known that binds, but for what is given: ``unseen`` and ``floor`` are bytes."""
    return Route(Learned(floor=floor, unseen=unseen, rate=rate, window=window))


def in_flight(admission: Admission, route: Route, number: int) -> None:
    """So many more of ``route`` are."""
    for _ in range(number):
        admission.starts(route)
