"""A loopback HTTP server of files that misbehaves by a seeded plan, and counts what it sends."""

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["Shaky", "ShakyServer", "serve"]


@dataclass
class Shaky:
    """How it misbehaves; probabilities are drawn per request, in the order in which requests come."""

    error_probability: float = 0.0
    """Of a 500 before anything is sent."""
    cut_probability: float = 0.0
    """Of closing the connection at a random byte of the body."""
    bytes_per_second: float | None = None
    has_ranges: bool = True
    has_length: bool = True
    stall_after: int | None = None
    """Bytes of the first body after which nothing more comes, until the client goes."""
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Answers, with headers, to the first requests."""
    seed: int = 0


class ShakyServer(ThreadingHTTPServer):
    """files: path (with its slash) -> bytes; may change while it runs. requests: method, path and Range of each."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], shaky: Shaky) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.shaky = files, shaky
        self.random, self.lock = random.Random(shaky.seed), threading.Lock()
        self.requests: list[tuple[str, str | None]] = []
        self.bytes_sent: Counter[str] = Counter()
        self.stop = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is none."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


@contextmanager
def serve(files: dict[str, bytes], shaky: Shaky | None = None) -> Iterator[ShakyServer]:
    with ShakyServer(files, shaky or Shaky()) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.stop.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: ShakyServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, shaky = self.server, self.server.shaky
        path = self.path.partition("?")[0]
        with server.lock:
            number = len(server.requests)
            server.requests.append((self.path, self.headers.get("Range")))
            is_error = server.random.random() < shaky.error_probability
            is_cut = server.random.random() < shaky.cut_probability
            cut_at = server.random.random()
        if number < len(shaky.statuses):
            self._answer(*shaky.statuses[number])
            return
        if path not in server.files or is_error:
            self._answer(500 if is_error else 404, {})
            return
        body = server.files[path]
        tag = f'"{hash(body)}"'
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = 0
        if wanted and shaky.has_ranges and self.headers.get("If-Range", tag) == tag:
            start = int(wanted[1])
            if start >= len(body):
                self._answer(416, {})
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("ETag", tag)
        if shaky.has_length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + int(cut_at * (len(body) - start)) if is_cut else len(body)
        self._send(path, body, start, end, shaky.stall_after if number == 0 else None)

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, path: str, body: bytes, start: int, end: int, stall_after: int | None) -> None:
        step = 4096 if self.server.shaky.bytes_per_second is None else 1024
        for offset in range(start, end, step):
            if stall_after is not None and offset - start >= stall_after:
                self.server.stop.wait(5)
                return
            piece = body[offset : min(offset + step, end)]
            self.wfile.write(piece)
            with self.server.lock:
                self.server.bytes_sent[path] += len(piece)
            if self.server.shaky.bytes_per_second is not None:
                time.sleep(len(piece) / self.server.shaky.bytes_per_second)
