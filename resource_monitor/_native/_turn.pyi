"""What turn/ offers to Python. Times are seconds of :func:`time.monotonic`, sizes bytes.

Not thread-safe beyond what the GIL makes atomic: whoever changes grants holds the gate's lock.
"""

from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Final, TypeVar, final

from resource_monitor.admission import Admission, Route

_Call = TypeVar("_Call", bound=Callable[..., Coroutine[Any, Any, None]])

SHORT_BODY: Final = 65536
"""Bytes of body for which no more is asked than that there is room for them when their request starts."""

BODY_PART: Final = 256
"""The part of the room that may come of a longer one without asking again."""

def use_guard(place: int, refusals: int, passed: int, /) -> None:
    """Where to find ``rm_guard_place``, ``rm_guard_thread_refusals`` and ``rm_guard_passed``."""

def thread_refusals() -> int:
    """How many allocations the guard refused on the calling thread. The GIL is kept: to give it away for so little lets
    another thread run for milliseconds."""

def passed() -> int:
    """Bytes of allocations that the guard let pass so far; the GIL is kept."""

def through_door(call: _Call, /) -> _Call:
    """The ``__call__`` of a :class:`Doorway`: requests that its door lets in are awaited as they are, and ``call`` is
    called for those that have to be asked for. It is a coroutine function to whoever looks."""

def queued(descriptor: int, /) -> int | None:
    """How many connections wait at a listening TCP socket to be accepted; ``None`` for any other descriptor."""

def route_class(method: str, path: str, /) -> str:
    """``"GET /users/{}/orders"``: what stands for one thing among many is left out; of an RPC nothing is."""

@final
class Lane:
    """One class of requests; ``name`` is ``None`` for the one that those beyond the bound share."""

    route: Route
    name: str | None

@final
class DeferringLock:
    """A lock for which what objects do at their end need not wait, although the garbage collector may bring that about
    while the very thread is inside, or has another lock that whoever is inside waits for: such an end is done
    :meth:`soon`. Who enters it once more on the same thread, where any other lock would be waited for for ever, gets a
    ``RuntimeError``. A child made by fork needs another one."""

    def __enter__(self) -> None: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
    def soon(self, act: Callable[..., object], /, *arguments: object) -> object:
        """Call ``act`` inside: now, which gives what it returns, or where somebody is inside, before they let go. What
        goes wrong there is reported as unraisable. Never waits."""

@final
class Tab:
    """Promises to requests that started under a grant, told to their ledger in bulk."""

    untold: int
    """What the ledger was not told yet; negative when more ended than was made."""
    returns: int
    """Changes with what the ledger was told that may leave more than before of the same headroom."""
    def promise(self, size: int, /) -> None:
        """Somebody else promised ``size``, so that less is left for grants."""
    def take(self) -> int:
        """What was untold, and is told with this."""

@final
class Turns:
    """The classes of one gate, and what was granted to them.

    ``make`` gives the :class:`Route` of a new class by its name; ``others`` is that of the classes beyond the bound.
    Grants are of the era of ``admission``, and so is the number that may be in flight; ``settle`` is called to take
    what was used. ``idle`` is called when nothing is in flight while other workers were told otherwise. ``exempt`` is
    called with a path and a mount point where the set ``exact`` and the ``prefixes`` do not tell, and always without
    ``exact``. A request promises ``cost``, or what ``cost_of`` says; ``priority_of`` must give one of ``priorities``,
    or Python decides.
    """

    waiting: int
    """Requests that wait: while there are any, nobody starts under a grant."""
    told: int
    """Requests in flight that other workers know of."""
    @property
    def untold(self) -> int:
        """Requests that started under grants and were not taken yet."""
    def __init__(
        self,
        *,
        make: Callable[[str], Route],
        others: Route,
        admission: Admission | None = None,
        settle: Callable[[], object] | None = None,
        idle: Callable[[], object] | None = None,
        exempt: Callable[[str, str], bool] | None = None,
        exact: set[str] | None = None,
        prefixes: tuple[str, ...] = (),
        priority_of: Callable[[Any], object] | None = None,
        priorities: type | None = None,
        cost: int = 0,
        cost_of: Callable[[Any], int] | None = None,
    ) -> None: ...
    @property
    def in_flight(self) -> int:
        """Requests that started under grants less those that ended, since both were last taken."""
    @property
    def grants(self) -> int:
        """How often one was given or prolonged so far."""
    @property
    def closed(self) -> bool: ...
    @property
    def unsettled(self) -> bool:
        """Whether admission does not know yet what was done under grants."""
    def set_clock(self, clock: Callable[[], float] | None, /) -> None:
        """Tell the time by ``clock``; ``None``: by the monotonic one."""
    def set_tab(self, tab: Tab, /) -> None:
        """Where promises are noted; without one there is no grant for requests that need any."""
    def lane(self, method: str, path: str, /) -> Lane:
        """The lane of a request's class, made if there was none."""
    def lanes(self) -> list[Lane]:
        """All, in the order in which they came."""
    def __enter__(self) -> Turns:
        """Within the gate's lock: let nobody start, and have ``settle`` take what was used."""
    def __exit__(self, *error: object) -> None:
        """Go on by what admission says now."""
    def take(self) -> tuple[Route, int, int, int, int, int, float, float, float] | None:
        """What was used of one class's grants, as :meth:`Admission.settle` takes it; ``None`` when that was all but
        what can wait: of classes that nothing binds, what started and ended well within a quarter of a second."""
    def take_of(self, lane: Lane, /) -> tuple[Route, int, int, int, int, int, float, float, float] | None:
        """The same of this class, whether it can wait or not."""
    def grant(
        self, lane: Lane, era: int, until: float, spare: int, unanswered: int, starts: int, unbound: int = 0, /
    ) -> None:
        """Let so many requests of ``lane`` start until then, as long as they and others promise no more than ``spare``
        and no more than ``unanswered`` of them have no answer yet."""
    def prolong(self, until: float, grants: int, /) -> bool:
        """Have what was granted to all classes that nothing binds last until then, unless anything was granted since
        there were so many :attr:`grants`, or revoked, or the turns are closed. Whether it does."""
    def revoke(self, lane: Lane, /) -> None:
        """Let none of them start any more."""
    def stand(self, lane: Lane, need: int, until: float, latest: float, returns: int, /) -> None:
        """Let the refusal of a request of ``lane`` that needed so much and is refused now stand for those that need no
        less until then, or until ``latest`` while they come in close succession; unless admission's openings or the
        tab's ``returns`` change, or there is anything to settle."""
    def refuse(self, method: str, path: str, mount: str, body: int, /) -> bool:
        """Whether a request with so large a body is refused by what stands, which counts it as refused."""
    def refuse_http(self, scope: Any, /) -> bool:
        """As :meth:`refuse`, for a request of HTTP without a body; false for any other."""
    def take_refused(self) -> tuple[int, float] | None:
        """How many were refused so since this was last asked, and when the last was; ``None`` for nobody."""
    def forget(self) -> None:
        """Nothing is in flight, granted or refused any more: in a child process."""

@final
class Turn(Coroutine[Any, Any, None]):
    """A request that was let in under a grant. Awaited, it runs the app, leaves, and refuses the request if that has to
    be after all. ``response`` is what Python sends its answer with, ``None`` where it goes straight to the server."""

    ask: Any
    shed: Any
    @property
    def lost(self) -> bool: ...
    @property
    def started(self) -> bool: ...
    @property
    def response(self) -> Any: ...
    @property
    def promise(self) -> None: ...
    @property
    def exempt(self) -> bool: ...
    def lose(self) -> None: ...
    def answered(self) -> None: ...
    def leave(self) -> None: ...
    def __await__(self) -> Generator[Any, Any]: ...
    def send(self, value: Any, /) -> Any: ...
    def throw(self, *error: Any) -> Any: ...
    def close(self) -> None: ...

@final
class Door:
    """The way in on one event loop. ``respond`` gives what sends for a turn whose first message answers an error,
    ``awaited`` a coroutine for what an app gave that is none, ``after`` what to await once a turn has left whose app
    ended in an error or after such an answer, or ``None``; ``left`` is called when one leaves while others wait,
    ``renew`` with a lane that nothing binds but the age of its grant, before a request of it. Requests that announce a
    body of no more than ``most_body`` bytes may be let in here, of more than ``SHORT_BODY`` only where there is room
    for ``BODY_PART`` times as much: what they receive with ``take_in`` makes of the server's own and what was
    announced."""

    def __init__(
        self,
        turns: Turns,
        respond: Callable[[Turn, Any, Any, Any], Any],
        awaited: Callable[[Any], Coroutine[Any, Any, Any]],
        after: Callable[[Turn, BaseException | None, Any, Any, Any], Coroutine[Any, Any, None] | None],
        left: Callable[[], object],
        renew: Callable[[Lane], object],
        take_in: Callable[[Any, int], Any],
        most_body: int,
    ) -> None: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def entered(self) -> int:
        """How many ever came in here."""
    def open(self) -> None:
        """From now on it is seen how late this thread's loop comes."""
    def shut(self) -> None:
        """Nobody looks any more."""
    def enter(self, app: Any, scope: Any, receive: Any, send: Any, /) -> Turn | None:
        """Let a request in, if its class has a grant and its body is not long; ``None``: it is to be asked for."""

class Doorway:
    """What an ASGI middleware is for :func:`through_door`. There is no ``door`` before an event loop was seen."""

    app: Any
    door: Door | None

class Gated:
    """A WSGI app behind a gate: requests are let in if their class has a grant and their body is not long, all others
    asked for."""

    app: Any
    def use(
        self,
        turns: Turns,
        asked: Callable[..., Any],
        adopt: Callable[[Response], Any],
        question: Callable[[Any], Any],
        served: Callable[[], object],
        renew: Callable[[Lane], object],
        take_in: Callable[[Any, int], Any],
        most_body: int,
        /,
    ) -> None:
        """``asked`` is called for requests that have to be asked for, ``adopt`` makes what goes on with a response that
        may be refused after all, ``question`` the :class:`Ask` for an environ, ``served`` is called when one leaves
        while others wait, ``renew`` with a lane that nothing binds but the age of its grant, before a request of it.
        ``take_in`` makes ``wsgi.input`` of the server's own and what was announced, ``most_body`` bytes at the most, of
        more than ``SHORT_BODY`` only where there is room for ``BODY_PART`` times as much; it tells by ``cut`` whether
        that ended early."""
    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any: ...

class Response:
    """A request that was let in under a grant, and its response: also what the app calls to start that. ``began`` tells
    that it did, ``given`` that the server was given something of the body."""

    shed: Any
    environ: Any
    start_response: Any
    input: Any
    pieces: Any
    close_pieces: Any
    refusals: int
    began: bool
    given: bool
    @property
    def lost(self) -> bool: ...
    @property
    def ask(self) -> Any: ...
    @property
    def promise(self) -> None: ...
    @property
    def exempt(self) -> bool: ...
    def lose(self) -> None: ...
    def answered(self) -> None: ...
    def leave(self) -> None: ...
    def close(self) -> None: ...

class SizedResponse(Response):
    """One whose app said how many pieces it has. (It is no subclass, but of the same form.)"""

    def __len__(self) -> int: ...
