"""Make ahead, in a background thread, what the training loop asks for next."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

AHEAD = 2  # steps; more would only cost memory

Ready = TypeVar("Ready")


def prefetch(make: Callable[[int], Ready], steps: Sequence[int], ahead: int = AHEAD) -> Iterator[Ready]:
    """Yield make(step) for every step in order, made in a background thread; its exceptions are raised here."""
    made: queue.SimpleQueue[Future[Ready]] = queue.SimpleQueue()
    room, stopped = threading.Semaphore(ahead), threading.Event()

    def work() -> None:
        for step in steps:
            room.acquire()
            if stopped.is_set():
                return
            future: Future[Ready] = Future()
            made.put(future)
            try:
                future.set_result(make(step))
            except Exception as error:  # noqa: BLE001 (raised where the result is asked for)
                future.set_exception(error)
                return

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in steps:
            result = made.get().result()
            room.release()
            yield result
    finally:
        stopped.set()
        room.release()
        thread.join(timeout=10)
