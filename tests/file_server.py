"""A local HTTP server of one file that can break off, change the file, or know no ranges."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves ``content`` at every address.

    Attributes:
        content: The file.
        breaks: Bytes after which each of the next answers is cut off.
        statuses: Statuses with which the next requests are refused.
        version: Its ETag; None sends none.
        ranges: Whether ``Range`` is heeded.
        asked: ``Range`` header of every request so far.
    """

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.content, self.breaks, self.statuses = content, [], []
        self.version, self.ranges, self.asked = '"1"', True, []

    def url(self, name: str) -> str:
        return f'http://127.0.0.1:{self.server_port}/{name}'


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, begin = self.server, 0
        wanted = self.headers.get('Range')
        server.asked.append(wanted)
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        if wanted and server.ranges and self.headers.get('If-Range') == server.version:
            begin = int(re.fullmatch(r'bytes=(\d+)-', wanted)[1])
        body = server.content[begin:]
        self.send_response(206 if begin else 200)
        if server.version:
            self.send_header('ETag', server.version)
        if begin:
            last, total = len(server.content) - 1, len(server.content)
            self.send_header('Content-Range', f'bytes {begin}-{last}/{total}')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)


@contextmanager
def serving(content: bytes) -> Iterator[FileServer]:
    """A running server of ``content``."""
    with FileServer(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.02))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
