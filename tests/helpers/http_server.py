"""A local HTTP server that misbehaves as told: it truncates, lies about lengths, changes the file, answers errors."""

import http.server
import threading
from contextlib import contextmanager


class Reply:
    """One answer of the server: the bytes from the asked-for place on, as a good server; arguments change it."""

    def __init__(self, content, status=None, cut=None, length=None, etag='"one"', honours_range=True, headers=()):
        self.content, self.status, self.cut, self.length, self.etag = content, status, cut, length, etag
        self.honours_range, self.headers = honours_range, dict(headers)

    def send(self, handler):
        start = self.start(handler)
        body, status = self.content[start:], self.status or (206 if start else 200)
        if start and not body:
            status = 416
        handler.send_response(status)
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        handler.send_header("Content-Length", str(self.length or len(body)))
        if self.etag:
            handler.send_header("ETag", self.etag)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body if self.cut is None else body[: self.cut])

    def start(self, handler):
        asked, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        if not asked or not self.honours_range or (condition and condition != self.etag):
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))


@contextmanager
def serving(*replies, port=0):
    """A server that gives each reply once and the last one for ever; yields (url, list of Range headers asked for)."""
    left, asked = list(replies), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Range"))
            reply = left.pop(0) if len(left) > 1 else left[0]
            reply.send(self)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/corpus.zip", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
