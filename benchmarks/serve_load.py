"""A server under load: which answers are right, what grows, what a killed client or decoder costs.

    python benchmarks/serve_load.py

`videonsa serve` with the embedded model is asked by 32 clients at once: about six rendered clips,
named or sent along, whole and streamed, first questions and second turns. Every answer has to be
that of the engine, asked here. Then clients are killed in the middle of an answer or of the reading
of a long video, and it is measured how soon the server is idle; and each process that decodes is
killed in the middle of a request. Written to benchmarks/results/cpu/serve_load.json.
"""

import argparse
import base64
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import openai
import torch

import videonsa
from videonsa.bench.sample_video import sample_video
from videonsa.disk import write_atomic
from videonsa.machine import measurement_facts
from videonsa.rendered.clips import KINDS, ask_about, make_scene, scene_seed, write_video

FORMAT = "videonsa serve load 1"
SEEDS, SECONDS, OBJECTS = range(3, 9), 24.0, 3
WARM = 200
"""Requests before memory is read the first time: libraries keep what their first calls take."""
KEPT = "5MB"
"""For sessions on the device: four of the six clips, so that some are read again."""
KILLED = 8
LONG_ANSWER = {"max_tokens": 2000, "temperature": 2.0}
"""Drawn at random: it seldom ends by itself."""


class Question(NamedTuple):
    """A question about a clip, a further one, and the engine's answers."""

    clip: Path
    texts: tuple[str, str]
    answers: tuple[str, str]


class Server:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.url = process, f"http://127.0.0.1:{port}"

    def health(self) -> dict[str, Any]:
        """What /health says."""
        with urlopen(f"{self.url}/health", timeout=30) as answer:
            return dict(json.load(answer))

    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        told = self.health()
        return not (told["requests"] or told["waiting"] or told["running"])

    def decoders(self) -> list[int]:
        """The processes that decode."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(number) for task in tasks for number in task.read_text().split()]

    def memory(self) -> dict[str, int]:
        """Resident bytes of the server and of what decodes, and open files."""
        return {
            "resident_bytes": _resident(self.process.pid),
            "decoders_resident_bytes": sum(map(_resident, self.decoders())),
            "open_files": len(os.listdir(f"/proc/{self.process.pid}/fd")),
        }


def _resident(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    found = [line for line in lines if line.startswith("VmRSS:")]
    return sum(int(line.split()[1]) for line in found) * 1024  # one that was killed has none


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server about the files of a folder, stopped by SIGTERM at the end."""
    command = [sys.executable, "-m", "videonsa", "serve", "--port", "0", "--media", str(folder)]
    process = subprocess.Popen(
        [*command, "--keep", KEPT, "--queue", "64"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        yield Server(process, int(line.split(":")[-1].split("/")[0]))
        process.send_signal(signal.SIGTERM)
        if status := process.wait(30):
            raise SystemExit(f"the server ended with status {status}")
    finally:
        process.kill()


def make_questions(folder: Path) -> list[Question]:
    """Questions of all kinds about clips, with what the engine answers."""
    qa, found = videonsa.load("embedded", device="cpu"), []
    for seed in SEEDS:
        scene = make_scene(scene_seed("test", seed), duration=SECONDS, num_objects=OBJECTS)
        clip = folder / f"clip{seed}.mp4"
        write_video(scene, clip)
        session = qa.open(clip)
        texts = [one.text for kind in KINDS if (one := ask_about(scene, kind))]
        for text, further in zip(texts, [*texts[1:], texts[0]], strict=True):
            answers = session.ask(text, fresh=True).text, session.ask(further).text
            found.append(Question(clip, (text, further), answers))
    return found


def body(question: Question, *, sent: bool, further: bool) -> dict[str, Any]:
    """A request: the clip named or sent along, and one turn or two."""
    url = f"file://{question.clip}"
    if sent:
        url = f"data:video/mp4;base64,{base64.b64encode(question.clip.read_bytes()).decode()}"
    video = {"type": "video_url", "video_url": {"url": url}}
    first = [video, {"type": "text", "text": question.texts[0]}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": first}]
    if further:
        turns += [
            {"role": "assistant", "content": question.answers[0]},
            {"role": "user", "content": question.texts[1]},
        ]
    return {"model": "embedded", "messages": turns}


class Outcome(NamedTuple):
    """What came of a request."""

    right: bool
    seconds: float
    first_seconds: float | None
    """To the first text, of a stream."""
    cached: bool
    together: int


def ask(client: openai.OpenAI, question: Question, draw: random.Random) -> Outcome:
    """One request, in one of the ways there are."""
    further, stream = draw.random() < 0.3, draw.random() < 0.5
    asked = body(question, sent=draw.random() < 0.2, further=further)
    begin, first = time.perf_counter(), None
    text = ""
    if stream:
        for chunk in client.chat.completions.create(**asked, stream=True):
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.perf_counter() - begin
                text += chunk.choices[0].delta.content
            usage = chunk.usage
    else:
        reply = client.chat.completions.create(**asked)
        text, usage = reply.choices[0].message.content, reply.usage
    right = text == question.answers[further]
    seconds = time.perf_counter() - begin
    return Outcome(right, seconds, first, usage.cached_tokens > 0, usage.answered_together)


def load(server: Server, questions: list[Question], *, number: int, clients: int) -> list[Outcome]:
    """So many requests by so many clients at once."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=5)

    def one(seed: int) -> Outcome:
        draw = random.Random(seed)
        return ask(client, draw.choice(questions), draw)

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, range(number)))


def killed_clients(server: Server, asked: dict[str, Any], *, after: float) -> list[float]:
    """Seconds until the server is idle, once a client that asks is killed."""
    seconds = []
    for _ in range(KILLED):
        code = (
            "import sys; from urllib.request import Request, urlopen; "
            "urlopen(Request(sys.argv[1], sys.stdin.buffer.read())).read()"
        )
        address = f"{server.url}/v1/chat/completions"
        with subprocess.Popen(
            [sys.executable, "-c", code, address], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as client:
            assert client.stdin is not None
            client.stdin.write(json.dumps(asked).encode())
            client.stdin.close()
            _wait(lambda: not server.is_idle(), 120)
            time.sleep(after)
            was_idle = server.is_idle()
            client.kill()
            begin = time.perf_counter()
            _wait(server.is_idle, 120)
            if not was_idle:
                seconds.append(time.perf_counter() - begin)
    return seconds


def killed_decoders(server: Server, question: Question, long: dict[str, Any]) -> dict[str, Any]:
    """Kill what decodes in the middle of a request: that one fails, and the next is answered."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with ThreadPoolExecutor(1) as pool:
        failing = pool.submit(client.chat.completions.create, **long)
        _wait(lambda: server.health()["running"] == 1, 120)
        time.sleep(1.0)
        killed = server.decoders()
        for process in killed:
            os.kill(process, signal.SIGKILL)
        try:
            failing.result(60)
            told = None
        except openai.APIStatusError as error:
            told = {"status": error.status_code, "message": error.body["message"]}
    reply = client.chat.completions.create(**body(question, sent=True, further=False))
    right = reply.choices[0].message.content == question.answers[0]
    return {"killed": len(killed), "told": told, "next_is_right": right}


def _wait(holds: Callable[[], bool], seconds: float) -> None:
    end = time.perf_counter() + seconds
    while not holds():
        if time.perf_counter() > end:
            raise SystemExit("the server did not get there in time")
        time.sleep(0.01)


def _quantiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=20)
    return {"median": cuts[9], "p95": cuts[18], "max": max(values)}


def measure(folder: Path, *, number: int, clients: int) -> dict[str, Any]:
    """All of it."""
    questions = make_questions(folder)
    long_video = folder / "long.mp4"
    shutil.copy(sample_video(minutes=1), long_video)
    long = body(Question(long_video, ("What?", ""), ("", "")), sent=False, further=False)
    with serving(folder) as server:
        load(server, questions, number=WARM, clients=clients)
        _wait(server.is_idle, 120)
        before, begin = server.memory(), time.perf_counter()
        outcomes = load(server, questions, number=number, clients=clients)
        seconds = time.perf_counter() - begin
        _wait(server.is_idle, 120)
        after = server.memory()
        answering = body(questions[0], sent=False, further=False) | LONG_ANSWER
        found = {
            "in_an_answer": killed_clients(server, answering, after=0.02),
            "while_a_video_is_read": killed_clients(server, long, after=0.5),
        }
        decoders = killed_decoders(server, questions[0], long)
        end = server.memory()
    return {
        "requests": number,
        "clients": clients,
        "right": sum(one.right for one in outcomes),
        "cached": sum(one.cached for one in outcomes),
        "answered_together": sum(one.together > 1 for one in outcomes),
        "requests_per_second": number / seconds,
        "seconds": _quantiles([one.seconds for one in outcomes]),
        "first_text_seconds": _quantiles(
            [one.first_seconds for one in outcomes if one.first_seconds is not None]
        ),
        "memory": {"before": before, "after": after, "end": end},
        "killed_clients_idle_after_seconds": found,
        "killed_decoders": decoders,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu/serve_load.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), number=args.requests, clients=args.clients)
    facts = measurement_facts(torch.device("cpu"))
    result = {"format": FORMAT, "environment": facts} | found
    write_atomic(args.out, json.dumps(result, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
