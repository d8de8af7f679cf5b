"""Made ahead: what the training loop asks for next is made in a background thread while it computes."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

AHEAD = 2  # steps; more would only cost memory

Out = TypeVar("Out")


def prefetch(make: Callable[[int], Out], steps: Iterable[int], ahead: int = AHEAD) -> Iterator[Out]:
    """make(step) for every step in order, made in a background thread; its exceptions are raised here."""
    made: queue.Queue[tuple[Out | None, BaseException | None]] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def offer(item: tuple[Out | None, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                made.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in steps:
                offer((make(step), None))
                if stopped.is_set():
                    return
            offer((None, StopIteration()))
        except Exception as error:  # noqa: BLE001 (handed to the consumer, which raises it)
            offer((None, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join(timeout=10)
