"""A real S3 server (moto, in its own process) behind a proxy that fails requests as networks and object stores do.

The proxy's faults are a function of (seed, request, how often it came): the same requests meet the same faults.
"""

import http.client
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipeline.runtime.local import free_ports

FAULTS = ("internal error", "slow down", "stall", "cut upload", "cut download", "lost answer")
IN_A_ROW = 3  # a request fails at most this often before it is let through


@dataclass
class Plan:
    """The requests that fail, and what happened so far."""

    share: float = 0.0  # of the requests
    seed: int = 0
    kinds: tuple[str, ...] = FAULTS
    only: str = ""  # regular expression of "METHOD path?query" that may fail; others are let through
    always: bool = False  # whatever matches `only` fails every time
    stall_s: float = 3.0  # longer than the client's patience
    met: Counter[str] = field(default_factory=Counter)  # fault -> times
    seen: Counter[str] = field(default_factory=Counter)  # request -> times
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, request: str, size: int) -> str | None:
        request = re.sub("uploadId=[^& ]*", "uploadId", request)  # which the server draws at random
        with self.lock:
            count = self.seen[request]
            self.seen[request] += 1
            if not re.search(self.only, request) or (count % (IN_A_ROW + 1) == IN_A_ROW and not self.always):
                return None
            draw = random.Random(f"{self.seed} {request} {count}")
            if draw.random() >= self.share:
                return None
            possible = [kind for kind in self.kinds if size or kind != "cut upload"]
            chosen = draw.choice(possible) if possible else None
            if chosen:
                self.met[chosen] += 1
            return chosen


@dataclass
class FaultyS3:
    """A running service: `endpoint` meets the faults of `plan`, which a test may replace; `direct` avoids them."""

    endpoint: str
    direct: str
    plan: Plan
    log: list[str] = field(default_factory=list)  # "METHOD path" of every request that came


@contextmanager
def faulty_s3() -> Iterator[FaultyS3]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, server)
        service = FaultyS3("", f"http://127.0.0.1:{port}", Plan())
        proxy = _Proxy(("127.0.0.1", 0), type("Bound", (_Handler,), {"service": service, "port": port}))
        service.endpoint = f"http://127.0.0.1:{proxy.server_port}"
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield service
        finally:
            proxy.shutdown()
            proxy.server_close()
    finally:
        server.kill()
        server.wait()


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that has given up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Forward a request to the server, or inject a fault."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    service: FaultyS3
    port: int

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def handle_any(self) -> None:
        if "100-continue" in self.headers.get("Expect", ""):
            self.send_response_only(100)
            self.end_headers()
        size = int(self.headers.get("Content-Length") or 0)
        request = f"{self.command} {self.path} {self.headers.get('Range', '')}".strip()
        self.service.log.append(request)
        fault = self.service.plan.fault(request, size)
        if fault == "cut upload":
            self.rfile.read(size // 2)
            return self._cut()
        body = self.rfile.read(size) if "chunked" not in self.headers.get("Transfer-Encoding", "") else self._chunks()
        if fault == "internal error":
            return self._answer(500, b"<Error><Code>InternalError</Code><Message>injected</Message></Error>")
        if fault == "slow down":
            return self._answer(503, b"<Error><Code>SlowDown</Code><Message>injected</Message></Error>")
        if fault == "denied":
            return self._answer(403, b"<Error><Code>AccessDenied</Code><Message>injected</Message></Error>")
        if fault == "stall":
            time.sleep(self.service.plan.stall_s)
            return self._cut()
        upstream = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            dropped = ("expect", "transfer-encoding", "content-length")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            content = answer.read()
        finally:
            upstream.close()
        if fault == "lost answer":  # the server did what was asked, and nobody hears of it
            return self._cut()
        half = fault == "cut download" and len(content) > 1
        if fault == "cut download" and not half:
            return self._cut()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        if length is not None:
            self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if half else content)
        if half:
            self._cut()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, f"moto's server ended with status {server.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("moto's server does not answer")
