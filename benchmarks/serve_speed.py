"""What the server costs beside its engine: first token, and 16 clients who ask about one video.

    python benchmarks/serve_speed.py --out benchmarks/results/nvidia-h200/serve_speed.json
    python benchmarks/serve_speed.py --model tiny --minutes 1 --fps 0.5 --device cpu --out OUT

Random weights of the 7B shape are asked about a 720p file of about 128K tokens, first by sessions
of their own, then by clients over HTTP, in one process. A first question reads the file; a second
one does not. All of it is repeated, and medians are compared. What may be read of the file is in
the page cache by then, and kernels are compiled.
"""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import torch

from videonsa.bench.random_model import MODELS
from videonsa.bench.sample_video import sample_video
from videonsa.bench.session import random_qa
from videonsa.disk import write_atomic
from videonsa.inference.engine import VideoQA
from videonsa.inference.warm_up import can_warm_up, warm_up
from videonsa.machine import measurement_facts
from videonsa.server.decoding import IsolatedReader
from videonsa.server.front import Front
from videonsa.server.media import MediaPolicy, MediaSources
from videonsa.server.model_thread import ModelThread
from videonsa.server.run import listen, make_server
from videonsa.server.settings import KeepSettings, ServeSettings
from videonsa.server.state import open_state
from videonsa.video.chat import DEFAULT_SYSTEM

FORMAT = "videonsa serve speed 1"
QUESTIONS = [f"What happens in part {number} of this video, and why?" for number in range(64)]


@contextmanager
def serving(qa: VideoQA, folder: Path) -> Iterator[openai.OpenAI]:
    """A client of a server for this model."""
    settings = ServeSettings(model_name="model", system=DEFAULT_SYSTEM)
    reader = IsolatedReader()
    reader.start()
    keep = KeepSettings(device_bytes=40 * 10**9)
    with listen("127.0.0.1", 0) as listening, open_state(None) as state:
        thread = ModelThread(qa, reader, keep, most_together=64)
        policy = MediaPolicy(folder=folder)
        sources = MediaSources(policy, state=state, reader=reader)
        server = make_server(Front(qa, thread, settings, sources=sources), stop_timeout=10)
        runner = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        runner.start()
        try:
            address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
            yield openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=500)
        finally:
            server.should_exit = True
            runner.join()


class Engine:
    """Asks the model itself."""

    def __init__(self, qa: VideoQA, video: Path, new_tokens: int) -> None:
        self._qa, self._video, self._new_tokens = qa, video, new_tokens
        self._session = qa.open(video, progress=False)

    def first(self, question: str) -> float:
        """Seconds to the first text of a first question."""
        begin = time.perf_counter()
        self._session = self._qa.open(self._video, progress=False)
        next(self._session.ask(question, stream=True, max_new_tokens=self._new_tokens))
        return time.perf_counter() - begin

    def second(self, question: str) -> float:
        """Seconds to the first text of a further question about the video."""
        begin = time.perf_counter()
        stream = self._session.ask(question, fresh=True, stream=True, max_new_tokens=8)
        next(stream)
        seconds = time.perf_counter() - begin
        stream.finish()
        return seconds

    def together(self, questions: list[str]) -> float:
        """Tokens a second of questions side by side."""
        begin = time.perf_counter()
        answers = self._session.ask_each(questions, fresh=True, max_new_tokens=self._new_tokens)
        return sum(one.new_tokens for one in answers) / (time.perf_counter() - begin)


class Clients:
    """Ask over HTTP."""

    def __init__(self, client: openai.OpenAI, video: Path, new_tokens: int) -> None:
        self._client, self._url, self._new_tokens = client, f"file://{video}", new_tokens

    def _stream(self, question: str, system: str, new_tokens: int) -> Any:
        video = {"type": "video_url", "video_url": {"url": self._url}}
        content = [video, {"type": "text", "text": question}]
        turns = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        return self._client.chat.completions.create(
            model="model", messages=turns, stream=True, max_tokens=new_tokens
        )

    def _first_text(self, question: str, system: str) -> float:
        begin, seconds = time.perf_counter(), None
        for chunk in self._stream(question, system, 8):
            if seconds is None and chunk.choices[0].delta.content:
                seconds = time.perf_counter() - begin
        assert seconds is not None
        return seconds

    def first(self, question: str) -> float:
        """As for the engine: another system message, so that nothing is read of it yet."""
        return self._first_text(question, f"Run {time.monotonic_ns()}.")

    def second(self, question: str) -> float:
        """As for the engine."""
        return self._first_text(question, DEFAULT_SYSTEM)

    def together(self, questions: list[str]) -> float:
        """As for the engine, each question by a client of its own, twice in a row."""

        def twice(question: str) -> int:
            tokens = 0
            for words in (question, f"{question} Say more."):
                *_, last = self._stream(words, DEFAULT_SYSTEM, self._new_tokens)
                tokens += last.usage.completion_tokens
            return tokens

        begin = time.perf_counter()
        with ThreadPoolExecutor(len(questions)) as pool:
            tokens = sum(pool.map(twice, questions))
        return tokens / (time.perf_counter() - begin)


def compare(
    engine: Callable[[int], float], clients: Callable[[int], float], repeats: int
) -> dict[str, Any]:
    """Both in turn, after one of each that does not count."""
    ours, theirs = [], []
    for number in range(repeats + 1):
        theirs.append(engine(number))
        ours.append(clients(number))
        print(f"engine {theirs[-1]:.4g}, server {ours[-1]:.4g}", flush=True)
    ours, theirs = ours[1:], theirs[1:]
    ratio = statistics.median(ours) / statistics.median(theirs)
    return {"engine": theirs, "server": ours, "server_to_engine": ratio}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="7B")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=int, default=8)
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--max-pixels", type=int, default=448**2)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device(args.device)
    qa = random_qa(args.model, device)
    qa.sampling = replace(
        qa.sampling, fps=args.fps, max_frames=2**20, max_pixels=args.max_pixels, max_tokens=None
    )
    if can_warm_up(qa.model):
        warm_up(qa.model)
    video = sample_video(minutes=args.minutes)
    questions = QUESTIONS[: args.clients]
    with serving(qa, video.parent) as client:
        engine = Engine(qa, video, args.new_tokens)
        clients = Clients(client, video, args.new_tokens)
        found = {
            "second_question_first_text_seconds": compare(
                lambda n: engine.second(QUESTIONS[n]), lambda n: clients.second(QUESTIONS[n]), 5
            ),
            "together_tokens_per_second": compare(
                lambda _: engine.together(questions),
                lambda _: clients.together(questions),
                args.repeats,
            ),
            "first_question_first_text_seconds": compare(
                lambda n: engine.first(QUESTIONS[n]),
                lambda n: clients.first(QUESTIONS[n]),
                args.repeats,
            ),
        }
        tokens = qa.open(video, progress=False).num_tokens
    settings = {
        name: getattr(args, name) for name in ("model", "clients", "new_tokens", "minutes", "fps")
    }
    machine = measurement_facts(device)
    result = {"format": FORMAT, **settings, "video_tokens": tokens, "machine": machine}
    write_atomic(args.out, json.dumps(result | found, indent=2) + "\n")
    print(json.dumps(result | found, indent=2))


if __name__ == "__main__":
    main()
