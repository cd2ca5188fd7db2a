"""What a handler of a test took, which is to be gone with its request."""

import weakref


class Held:
    """Something that can be looked for once it should be gone."""


held: list["weakref.ref[Held]"] = []
"""All of it; whoever looks clears it before."""


def hold() -> Held:
    """Take some."""
    taken = Held()
    held.append(weakref.ref(taken))
    return taken


def take() -> None:
    """Take some, and run out of memory while it is held, with an error that a frame of its own traceback refers to, as
    who handles errors easily makes them: only the garbage collector would come for it."""
    taken = hold()  # noqa: F841
    try:
        raise MemoryError
    except MemoryError as error:
        kept = error  # noqa: F841
        raise
