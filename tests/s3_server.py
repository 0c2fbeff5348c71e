"""A real S3 server on loopback (moto's, over sockets), with faults to order."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

KINDS = ("error", "lost answer", "cut", "slow", "hang")


class Quiet(WSGIRequestHandler):
    def log(self, *args: Any) -> None:
        """Say nothing."""


class S3Server:
    """S3 on a free port of 127.0.0.1.

    Attributes:
        faults: kind → probability for each request: `error` answers 500 before anything is done,
            `lost answer` does it and closes the connection, `cut` closes it in the middle of the
            answer, `slow` waits a little, `hang` waits longer than anybody should.
        requests: (method, path) of each request that was answered.
        struck: how often each fault happened.
    """

    def __init__(self) -> None:
        self.faults: dict[str, float] = {}
        self.requests: list[tuple[str, str]] = []
        self.struck = dict.fromkeys(KINDS, 0)
        self.hang_seconds = 5.0
        self._random = random.Random(0)
        self._hangs = 0
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @contextmanager
    def failing(self, hangs: int = 1, **faults: float) -> Iterator[None]:
        """Faults by kind, with `_` for blanks, while the context lasts.

        Args:
            hangs: how many requests hang at most: each of them costs seconds.
        """
        self._hangs = hangs
        self.faults = {name.replace("_", " "): share for name, share in faults.items()}
        assert set(self.faults) <= set(KINDS)
        try:
            yield
        finally:
            self.faults = {}

    def count(self, method: str, part: str = "") -> int:
        return sum(verb == method and part in path for verb, path in self.requests)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        fault = self._draw()
        if fault == "slow":
            time.sleep(self._random.uniform(0.01, 0.1))
        elif fault == "hang":
            time.sleep(self.hang_seconds)
        elif fault == "error":
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if fault not in ("cut", "lost answer"):
            return self._app(environ, start_response)
        held: list[Any] = []
        body = b"".join(self._app(environ, lambda *answer: held.append(answer)))
        if fault == "lost answer" or not body:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return [b""]
        status, headers = held[0][:2]
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return self._half(body, environ["werkzeug.socket"])

    @staticmethod
    def _half(body: bytes, connection: socket.socket) -> Iterator[bytes]:
        yield body[: len(body) // 2]
        connection.shutdown(socket.SHUT_RDWR)

    def _draw(self) -> str | None:
        """At most one fault for each request."""
        point = self._random.random()
        for kind, share in self.faults.items():
            if point < share:
                if kind == "hang":
                    if self._hangs < 1:
                        return None
                    self._hangs -= 1
                self.struck[kind] += 1
                return kind
            point -= share
        return None
