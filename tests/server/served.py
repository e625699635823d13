"""A server in a thread of this process, on a loopback port, and clients of it."""

import base64
import json
import socket
import threading
import time
from contextlib import contextmanager
from http.client import HTTPConnection

import openai

from videonsa.server.frames import ReadHere
from videonsa.server.front import Front
from videonsa.server.media import MediaPolicy, MediaSources
from videonsa.server.model_thread import ModelThread
from videonsa.server.run import listen, make_server
from videonsa.server.settings import KeepSettings, ServeSettings
from videonsa.server.state import open_state
from videonsa.video.chat import DEFAULT_SYSTEM

QUESTIONS = ("What flashed?", "What colour is the circle?", "In which quarter was the flash?")
"""About the clip of `server_fixtures`; the embedded model can answer them."""


class Served:
    """A server that runs."""

    def __init__(self, front, port, server):
        self.front, self.port, self.server = front, port, server
        self.clients = []

    def client(self, **options):
        chosen = {"api_key": "none", "max_retries": 0} | options
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", **chosen)
        self.clients.append(client)  # closed at the end: a connection that is not would warn later
        return client

    def get(self, path):
        """The body of a plain request."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", path)
        found = connection.getresponse().read()
        connection.close()
        return found

    def post(self, body, path="/v1/chat/completions", headers=None):
        """(status, JSON) of a plain request."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, content, headers or {})
        answer = connection.getresponse()
        found = answer.status, json.loads(answer.read()), dict(answer.getheaders())
        connection.close()
        return found


@contextmanager
def running(qa, *, folder=None, policy=None, fetcher=None, keep=None, reader=None, **settings):
    """A `Served` with these settings."""
    settings = {"model_name": "embedded", "system": DEFAULT_SYSTEM} | settings
    chosen = ServeSettings(**settings)
    reader = reader or ReadHere()
    thread = ModelThread(
        qa, reader, keep or KeepSettings(device_bytes=10**8), most_together=chosen.most_together
    )
    with listen("127.0.0.1", 0) as listening, open_state(None) as state:
        policy = policy or MediaPolicy(folder=folder)
        sources = MediaSources(policy, state=state, reader=reader, fetcher=fetcher)
        front = Front(qa, thread, chosen, sources=sources)
        server = make_server(front, stop_timeout=10)
        runner = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        runner.start()
        served = Served(front, listening.getsockname()[1], server)
        try:
            yield served
        finally:
            for client in served.clients:
                client.close()
            server.should_exit = True
            runner.join(20)
    assert not runner.is_alive()


def video(path):
    return {"type": "video_url", "video_url": {"url": f"file://{path}"}}


def data_url(path):
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def text(words):
    return {"type": "text", "text": words}


def chat(*parts, **more):
    """A body with one turn of the user."""
    return {"model": "embedded", "messages": [{"role": "user", "content": [*parts]}]} | more


def wait_until(holds, seconds=20.0):
    """Whether something comes to hold, on a busy machine too."""
    end = time.perf_counter() + seconds
    while not holds():
        if time.perf_counter() > end:
            return False
        time.sleep(0.005)
    return True


def send_and_leave(port, body, *, key, until=None, path="/v1/chat/completions"):
    """Send a request, and close the connection: once something holds, or once bytes come."""
    content = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        lines = (
            f"POST {path} HTTP/1.1",
            "Host: 127.0.0.1",
            f"Authorization: Bearer {key}",
        )
        head = "\r\n".join((*lines, f"Content-Length: {len(content)}", "", ""))
        connection.sendall(head.encode() + content)
        if until is None:
            connection.recv(1)
        else:
            assert wait_until(until)
