"""One job at a time writes to a cache: its lease is CACHE/lock.json, which it renews every few seconds.

A killed owner's lease ends by itself: at once where its process can be seen to be gone, elsewhere when it was not
renewed for a while. No clock is compared with another machine's: a job that finds a lease watches it change.

The lock spares two jobs the work of making the same clips. It does not keep a cache whole: folders on a network and
object stores give no lock that a paused owner could not outlive, so commits are safe whoever makes them (commit.py).
"""

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from ...errors import JobFailed, UserError
from ...storage.files import read_json, remove, write_json

log = logging.getLogger("cache")

LOCK = "lock.json"
RENEW_S = 5.0
EXPIRY_S = 30.0  # a lease that was not renewed for this long is free
SETTLE_S = 1.0  # after which the later of two jobs that took the lease at once has written it


class LeaseRecord(TypedDict):
    """The content of lock.json."""

    owner: str  # a random name of one job
    host: str
    pid: int
    process: str  # machine, process table, number and start of the owner; "" if unknown
    since: str  # UTC, for people
    renewed: int  # times


class Lease:
    """The lease of this job on the cache at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.record = LeaseRecord(
            owner=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            process=_process(os.getpid()),
            since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
            renewed=0,
        )
        self._ended = threading.Event()
        self._taken: LeaseRecord | None = None

    def check(self) -> None:
        """Raise JobFailed if another job took the cache over, because this one did not renew its lease."""
        if self._taken is not None:
            raise JobFailed(
                f"{self._path}: {_who(self._taken)} took this cache over, because this job did not renew its lock "
                f"for {EXPIRY_S:g} s; committed clips stay; when the other job has ended, run again for the rest"
            )

    def take(self) -> None:
        """Write the lease. Raises UserError if another job has one."""
        found = _read(self._path)
        if found is not None and not _gone(found):
            _watch(self._path, found)
        write_json(f"{self._path}/{LOCK}", self.record)
        time.sleep(SETTLE_S)
        if other := self._other():
            raise _refusal(self._path, other)

    def keep(self) -> None:
        """Renew the lease until `release`, in a thread of its own."""
        while not self._ended.wait(RENEW_S):
            try:
                self._taken = self._other()
                if self._taken:
                    return
                self.record["renewed"] += 1
                write_json(f"{self._path}/{LOCK}", self.record)
            except OSError as error:
                log.warning("%s: the lock could not be renewed (%s); trying again", self._path, error)

    def release(self, keeper: threading.Thread) -> None:
        """End the thread `keeper` of `keep`, and delete the lease."""
        self._ended.set()
        keeper.join()
        if not self._other():
            remove(f"{self._path}/{LOCK}")

    def _other(self) -> LeaseRecord | None:
        """The lease of another job, if that is what lock.json holds."""
        found = _read(self._path)
        return found if found is not None and found["owner"] != self.record["owner"] else None


@contextlib.contextmanager
def only_writer(path: str) -> Iterator[Lease]:
    """Hold the cache at `path` during the context. Raises UserError if another job holds it."""
    lease = Lease(path)
    lease.take()
    keeper = threading.Thread(target=lease.keep, name="cache lock", daemon=True)
    keeper.start()
    try:
        yield lease
    finally:
        lease.release(keeper)


def _watch(path: str, found: LeaseRecord) -> None:
    """Return when the lease `found` turns out to be free. Raises UserError when its owner renews it."""
    log.info("%s: %s may be writing there; watching its lock for up to %.0f s", path, _who(found), EXPIRY_S)
    deadline = time.monotonic() + EXPIRY_S
    while time.monotonic() < deadline:
        time.sleep(min(1.0, RENEW_S))
        now = _read(path)
        if now is None or _gone(now):
            return
        if now != found:
            raise _refusal(path, now)


def _refusal(path: str, record: LeaseRecord) -> UserError:
    return UserError(
        f"{path}: {_who(record)} is writing to this cache; wait until that job ends, or give another --cache.path"
    )


def _who(record: LeaseRecord) -> str:
    return f"process {record['pid']} on {record['host']}, since {record['since']},"


def _read(path: str) -> LeaseRecord | None:
    try:
        return read_json(f"{path}/{LOCK}")
    except (FileNotFoundError, ValueError):  # none, or not a lock
        return None


def _gone(record: LeaseRecord) -> bool:
    """Whether the owner ran in this process table and runs no more."""
    ours, owner = _process(os.getpid()), record["process"]
    return ours != "" and owner.split("/")[:2] == ours.split("/")[:2] and _process(record["pid"]) != owner


def _process(pid: int) -> str:
    """MACHINE'S BOOT/PROCESS TABLE/PID/START of a process; "" if /proc does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        table = os.readlink("/proc/self/ns/pid")
        start = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return ""
    return f"{boot}/{table}/{pid}/{start}"
