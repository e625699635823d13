"""What a session of many questions leaves behind in memory: nothing may grow with them.

    python benchmarks/session_memory.py

A session of the embedded model about a rendered clip answers questions, in turn whole, streamed,
streamed and stopped after the first piece, and several side by side; each is about the clip alone.
Between parts it is counted what is in use. Then a conversation of follow-up questions grows and is
forgotten, twice. Written to benchmarks/results/cpu/session_memory.json.
"""

import argparse
import gc
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

import videonsa
from videonsa.disk import write_atomic
from videonsa.inference.session import Session
from videonsa.machine import measurement_facts
from videonsa.rendered.clips import KINDS, ask_about, make_scene, scene_seed, write_video

FORMAT = "videonsa session memory 1"
SCENE, SECONDS, OBJECTS = 3, 24.0, 3
SIDE_BY_SIDE = 4
FOLLOW_UPS = 100
PARTS = 10
WARM = 100
"""Questions before the first count: libraries keep what they allocate for their first calls."""


def in_use() -> dict[str, int]:
    """What this process holds: resident bytes, tensors and their bytes, all Python objects."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    strided = (tensor for tensor in tensors if tensor.layout == torch.strided)
    storages = (tensor.untyped_storage() for tensor in strided)
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident_bytes": pages * resource.getpagesize(),
        "tensors": len(tensors),
        "tensor_bytes": sum(sizes.values()),
        "objects": len(gc.get_objects()),
    }


def ask(session: Session, questions: Iterator[str], count: int) -> int:
    """Ask about the video alone, in each way there is, that many times at least; gives how many."""
    asked = 0
    while asked < count:
        session.ask(next(questions), fresh=True)
        for _ in session.ask(next(questions), fresh=True, stream=True):
            pass
        stopped = session.ask(next(questions), fresh=True, stream=True)
        next(stopped)
        stopped.close()
        session.ask_each(list(islice(questions, SIDE_BY_SIDE)), fresh=True)
        asked += 3 + SIDE_BY_SIDE
    session.forget_conversation()
    return asked


def converse(session: Session, questions: Iterator[str], count: int) -> dict[str, Any]:
    """Ask questions that follow one another, and what they take; then forget them."""
    before, held = in_use(), session.num_tokens
    for question in islice(questions, count):
        session.ask(question)
    tokens, after = session.num_tokens - held, in_use()
    session.forget_conversation()
    return {"questions": count, "tokens": tokens, "before": before, "after": after}


def measure(count: int, *, warm_up: int = WARM, follow_ups: int = FOLLOW_UPS) -> dict[str, Any]:
    """All counts of a session of so many questions."""
    scene = make_scene(scene_seed("test", SCENE), duration=SECONDS, num_objects=OBJECTS)
    questions = cycle(found.text for kind in KINDS if (found := ask_about(scene, kind)))
    model = videonsa.load("embedded", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        write_video(scene, Path(folder, "clip.mp4"))
        session = model.open(Path(folder, "clip.mp4"))
    begun = time.perf_counter()
    warm = asked = ask(session, questions, warm_up)
    counts = [{"questions": 0, **in_use()}]
    for _ in range(PARTS):
        asked += ask(session, questions, count // PARTS)
        counts.append({"questions": asked - warm, **in_use()})
    conversations = [converse(session, questions, follow_ups) for _ in range(2)]
    return {
        "questions": asked - warm,
        "warm_up": warm,
        "tokens": session.num_tokens,
        "counts": counts,
        "conversations": conversations,
        "at_the_end": in_use(),
        "seconds": time.perf_counter() - begun,
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/cpu/")
    options = parser.parse_args()
    machine = measurement_facts(torch.device("cpu"))
    result = {"format": FORMAT, "machine": machine, **measure(options.questions)}
    folder = options.out or Path(__file__).parent / "results/cpu"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "session_memory.json", json.dumps(result, indent=1) + "\n")
    for count in result["counts"]:
        print(" ".join(f"{name} {value:,}" for name, value in count.items()))


if __name__ == "__main__":
    main()
