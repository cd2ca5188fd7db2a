import gc
import weakref
from collections.abc import Iterator
from contextlib import suppress

import pytest

from resource_monitor.errors import MemoryPressure
from resource_monitor.middleware.losses import let_go, lost_to_memory


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def in_context(error: Exception, context: Exception) -> Exception:
    error.__context__ = context
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryPressure("too much"),
        caused(RuntimeError("render failed"), MemoryError()),
        caused(RuntimeError(), caused(ValueError(), MemoryError())),
        ExceptionGroup("", [MemoryError()]),
        ExceptionGroup("", [MemoryError(), ExceptionGroup("", [MemoryPressure("too much")])]),
        caused(RuntimeError(), ExceptionGroup("", [MemoryError()])),
    ],
)
def test_a_memory_error_or_what_was_raised_from_one_is_a_loss(error: Exception) -> None:
    assert lost_to_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError(),
        KeyboardInterrupt(),
        # raised while handling it, but for a reason of its own
        in_context(RuntimeError(), MemoryError()),
        ExceptionGroup("", [MemoryError(), RuntimeError()]),
        BaseExceptionGroup("", [MemoryError(), KeyboardInterrupt()]),
        caused(RuntimeError(), ExceptionGroup("", [MemoryError(), RuntimeError()])),
    ],
)
def test_everything_else_is_none(error: BaseException | None) -> None:
    assert not lost_to_memory(error)


@pytest.mark.parametrize(("inner", "lost"), [(MemoryError(), True), (KeyError(), False)])
def test_an_error_that_was_raised_from_the_group_it_is_in_is_judged_by_itself(inner: Exception, lost: bool) -> None:
    group = ExceptionGroup("", [inner])
    inner.__cause__ = group
    assert lost_to_memory(inner) is lost
    assert lost_to_memory(group) is lost


def test_errors_of_a_group_may_have_one_cause() -> None:
    shared = caused(ValueError(), MemoryError())
    assert lost_to_memory(ExceptionGroup("", [caused(RuntimeError(), shared), caused(KeyError(), shared)]))


class Block:
    """Stands for memory: something that can be watched going away."""


@pytest.fixture
def no_garbage_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


watched: list["weakref.ref[Block]"] = []


def fail(error: Exception) -> None:
    block = Block()
    watched.append(weakref.ref(block))
    raise error


def plain() -> None:
    fail(MemoryError())


def with_cause() -> None:
    try:
        fail(MemoryError())
    except MemoryError as error:
        raise RuntimeError from error


def with_context() -> None:
    try:
        fail(KeyError())
    except KeyError:
        fail(MemoryError())


def in_group() -> None:
    errors = []
    for _ in range(2):
        try:
            fail(MemoryError())
        except MemoryError as error:
            errors.append(error)
    raise ExceptionGroup("", errors)


def in_circle() -> None:
    try:
        fail(MemoryError())
    except MemoryError as error:
        other = RuntimeError()
        error.__context__, other.__cause__ = other, error
        raise other from error


@pytest.mark.usefixtures("no_garbage_collector")
@pytest.mark.parametrize("failing", [plain, with_cause, with_context, in_group, in_circle])
def test_letting_go_frees_what_the_frames_held_while_the_error_lives_on(failing: object) -> None:
    watched.clear()
    with suppress(BaseException):
        try:
            failing()  # type: ignore[operator]
        except BaseException as error:
            kept = error
            raise
    assert all(ref() for ref in watched)
    let_go(kept)
    assert watched
    assert not any(ref() for ref in watched)


def test_frames_that_still_run_are_left_alone() -> None:
    block = Block()
    try:
        fail(MemoryError())
    except MemoryError as error:
        let_go(error)
    assert isinstance(block, Block)
