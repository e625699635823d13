"""An internet of pretended hosts: their names, their addresses, and what they answer."""

import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpcore

from videonsa.server.fetching import Fetcher, check_hosts

PUBLIC = "93.184.215.14"
ADDRESSES = {
    "videos.example": [PUBLIC],
    "mirror.example": ["2606:2800:21f:cb07::1"],
    "inside.example": ["10.0.0.7"],
    "loop.example": ["127.0.0.1"],
    "mapped.example": ["::ffff:169.254.169.254"],
    "partly.example": [PUBLIC, "192.168.0.2"],
}


def resolve(host, port):
    if host in ADDRESSES:
        return ADDRESSES[host]
    return [str(one[4][0]) for one in socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)]


class _OneServer(httpcore.NetworkBackend):
    """Whatever public address is dialled, the test's own server answers; it takes notes."""

    def __init__(self, port):
        self.port, self.dialled = port, []

    def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.dialled.append(host)
        return httpcore.SyncBackend().connect_tcp("127.0.0.1", self.port, timeout)


class Web:
    """What the pretended hosts answer, and a `Fetcher` that reaches them."""

    def __init__(self, port):
        self.answers = {}
        self.asked = []
        self.network = _OneServer(port)

    def fetcher(self, *hosts, most_bytes=2**20, seconds=5.0):
        return Fetcher(
            hosts=check_hosts(hosts),
            most_bytes=most_bytes,
            seconds=seconds,
            resolve=resolve,
            network=self.network,
        )

    def redirect(self, place, target):
        self.answers[place] = 302, {"Location": target}, b""


@contextmanager
def pretended_web():
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            web.asked.append(self.headers["Host"] + self.path)
            status, headers, content = web.answers.get(self.path, (404, {}, b""))
            self.send_response(status)
            pieces = content if not isinstance(content, bytes) else [content]
            if isinstance(content, bytes):
                headers = {"Content-Length": str(len(content))} | headers
            else:
                self.close_connection = True
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for piece in pieces:
                    self.wfile.write(piece)
            except OSError:
                self.close_connection = True

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web = Web(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
