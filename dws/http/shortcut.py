"""A way past the task that Granian makes for each request, for those that need none.

What lives here: where such requests branch off. What must not: which ones they are:
the application says so, by one of two methods beside `__rsgi__`.

    answer_at_once(scope, proto) -> bool    in Granian's own thread: True if it has been answered
    begin(scope, proto) -> bool             in the loop's thread: True if it has been, or will be, answered

Other requests go to `__rsgi__`, as all do. A prototype that gave 32 connections the same 4 KiB, on two
cores that were not quiet, answered 35,000 requests a second in Granian's way, 52,000 to 56,000 by `begin`
and 60,000 to 74,000 by `answer_at_once`: no task, and the loop is woken once for all that wait or not at all.

This rests on inner parts of Granian, looked for before they are used: in a version without them all
requests take its way, only slower.
"""

import logging
from collections import deque
from typing import Any, Final

_log = logging.getLogger(__name__)

_SCHEDULER: Final = "_new_cbscheduler"


def install(app: Any) -> bool:
    """Let the servers that this process starts from now on use the application's shortcut, if it has one.
    Whether they will."""
    at_once, begin = getattr(app, "answer_at_once", None), getattr(app, "begin", None)
    if at_once is None and begin is None:
        return False
    try:
        from granian._futures import _cbsched_aioschedule as schedule_task
        from granian._granian import CallbackScheduler
        from granian.server import embed

        usual = getattr(embed, _SCHEDULER)
    except (ImportError, AttributeError):
        _log.warning("this version of Granian is not known here: requests are answered the slow way")
        return False

    usual_task: Any = schedule_task
    base: Any = CallbackScheduler

    def new_scheduler(loop: Any, callback: Any, impl_asyncio: bool = False) -> Any:
        if not impl_asyncio:
            return usual(loop, callback, impl_asyncio=impl_asyncio)

        class Scheduler(base):  # type: ignore[misc]
            def __init__(self, *args: Any) -> None:
                super().__init__()
                # Granian takes this once, for good.
                rest = usual_task(loop, self._ctx, callback)
                self._schedule_fn = _at_once(at_once, rest) if at_once else _gathered(loop, begin, rest)

        return Scheduler(loop, callback, None, None, None)

    setattr(embed, _SCHEDULER, new_scheduler)
    return True


def _at_once(answer: Any, rest: Any) -> Any:
    def schedule(watcher: Any) -> None:
        try:
            done = answer(watcher.scope, watcher.proto)
        except Exception:
            # Whatever it is, it is told where all errors are.
            done = False
        if not done:
            rest(watcher)

    return schedule


def _gathered(loop: Any, begin: Any, rest: Any) -> Any:
    """The loop is woken once for all requests that come before it gets to them."""
    waiting: deque[Any] = deque()
    woken = False

    def drain() -> None:
        nonlocal woken
        # First, so that a request is either taken here or wakes the loop again.
        woken = False
        for _ in range(len(waiting)):
            watcher = waiting.popleft()
            try:
                done = begin(watcher.scope, watcher.proto)
            except Exception:
                done = False
            if not done:
                rest(watcher)

    def schedule(watcher: Any) -> None:
        nonlocal woken
        waiting.append(watcher)
        if not woken:
            woken = True
            loop.call_soon_threadsafe(drain)

    return schedule
