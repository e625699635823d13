"""Time of a first question on a machine that never compiled a kernel, at the 7B shape.

python benchmarks/first_question.py --out benchmarks/results/nvidia-h200/first_question.json

Each run is a process of its own with random weights, asked about a video of 720p. `before`
compiles when a kernel is first used, `beside` while the video is read, both from an empty cache;
`compiled` has the cache of `beside`. `ahead` asks nothing and does what `videonsa doctor --compile`
does, from an empty cache too. Making the model, which stands for reading its weights, is not in the
times.
"""

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
import torch

from videonsa.bench.random_model import one_layer_model, random_model
from videonsa.disk import partial_file, write_atomic
from videonsa.inference.engine import VideoQA
from videonsa.inference.warm_up import warm_up
from videonsa.machine import measurement_facts, usable_cores
from videonsa.models.checkpoints.tokenizer import load_tokenizer
from videonsa.models.locate import EMBEDDED, locate_model
from videonsa.models.methods import AttentionMethod, nsa_method
from videonsa.models.shape import ModelShape, published_shape
from videonsa.ops import NSASpec
from videonsa.ops.compilation import watch_compilation

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
TOKENS = 126_000
"""Of the video."""
NEW_TOKENS = 8
LONG = 60
"""Seconds after which a question tells where each of its threads stands, and ends."""
SECONDS, FPS, WIDTH, HEIGHT = 10, 30, 1280, 720
"""Of what is encoded of the video; the rest repeats it."""
CACHES = {
    "beside": "beside",
    "before": "before",
    "compiled": "beside",
    "ahead": "ahead",
}
"""The runs in order, and which cache each has."""


def published() -> ModelShape:
    """The shape of `MODEL`."""
    shape = published_shape(MODEL)
    assert shape is not None, "it is one of those that are known"
    return shape


def method_of(spec: str) -> AttentionMethod:
    """How it attends."""
    return nsa_method(NSASpec.released() if spec == "released" else NSASpec())


def model_of(spec: str) -> VideoQA:
    """A model with the tokenizer of the embedded one, and its tokens."""
    model = random_model(published(), device=torch.device("cuda"), dtype=torch.bfloat16)
    model.method = method_of(spec)
    tokenizer = load_tokenizer(locate_model(EMBEDDED))
    for name in ("vision_start", "vision_end"):
        setattr(model.config, f"{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|{name}|>"))
    for name in ("image", "video"):
        token = tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>")
        setattr(model.config, f"{name}_token_id", token)
    return VideoQA(model, tokenizer)


def video_of(minutes: int) -> Path:
    """720p of a moving gradient, quick to write: a few seconds are encoded, and repeated."""
    path = Path(tempfile.gettempdir()) / f"videonsa-first-question-{minutes}min.mp4"
    if path.exists():
        return path
    ramp = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH))
    with partial_file(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = 4_000_000
        packets = []
        for index in range(SECONDS * FPS):
            luma = ((ramp + 5 * index) // 6 % 256).astype(np.uint8)
            planes = np.vstack([luma, np.full((HEIGHT // 2, WIDTH), 128, np.uint8)])
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        contents = [(bytes(x), x.pts, x.is_keyframe) for x in packets]
        for repeat in range(minutes * 60 // SECONDS):
            for content, pts, is_keyframe in contents:
                packet = av.Packet(content)
                packet.pts = packet.dts = pts + repeat * SECONDS * FPS
                packet.time_base, packet.stream = Fraction(1, FPS), stream
                packet.is_keyframe = is_keyframe
                container.mux(packet)
    return path


def ask(run: str, spec: str, minutes: int) -> dict[str, Any]:
    """One question in this process."""
    if run == "ahead":
        shape = replace(published(), method=method_of(spec))
        return asdict(warm_up(one_layer_model(shape, device=torch.device("cuda"))))
    path = video_of(minutes)
    qa = model_of(spec)
    torch.cuda.synchronize()
    notices: list[tuple[float, float]] = []
    faulthandler.dump_traceback_later(LONG, exit=True)
    with ExitStack() as stack:
        if run == "before":
            never = mock.patch("videonsa.inference.warm_up.can_warm_up", lambda model: False)
            stack.enter_context(never)
        begin = time.perf_counter()
        watch = stack.enter_context(
            watch_compilation(lambda x: notices.append((time.perf_counter() - begin, x.seconds)))
        )
        stream = qa.ask(
            path,
            "What happens?",
            stream=True,
            fps=2.0,
            max_tokens=TOKENS,
            max_new_tokens=NEW_TOKENS,
            progress=False,
        )
        read = time.perf_counter() - begin
        kernels = watch.compiled.count
        answer = stream.finish()
        return {
            "seconds": time.perf_counter() - begin,
            "read_seconds": read,
            "first_token_seconds": read + answer.first_token_seconds,
            "first_notice_seconds": notices[0][0] if notices else None,
            "compiling_before_first_notice": notices[0][1] if notices else None,
            "last_notice_seconds": notices[-1][0] if notices else None,
            "kernels": watch.compiled.count,
            "kernels_while_reading": kernels,
            "prompt_tokens": answer.usage.prompt_tokens,
            "notes": list(answer.usage.notes),
        }


def run_all(runs: list[str], spec: str, minutes: int) -> list[dict[str, Any]]:
    """Runs, each in a process of its own."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for run in runs:
            environment = os.environ | {"TRITON_CACHE_DIR": str(Path(folder, CACHES[run]))}
            command = [sys.executable, __file__, "--run", run, "--spec", spec]
            command += ["--minutes", str(minutes)]
            begin = time.perf_counter()
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=False
            )
            if done.returncode:
                print(f"{run} ended with {done.returncode}", file=sys.stderr, flush=True)
                continue
            result = json.loads(done.stdout.splitlines()[-1])
            found.append({"run": run, **result, "process_seconds": time.perf_counter() - begin})
            print(found[-1], file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Measure, or be measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", help="this one alone, in this process")
    parser.add_argument("--runs", default=",".join(CACHES), help="which, in this order")
    parser.add_argument("--minutes", type=int, default=5, help="of the video")
    parser.add_argument("--spec", choices=("paper", "released"), default="paper")
    args = parser.parse_args()
    if args.run is not None:
        print(json.dumps(ask(args.run, args.spec, args.minutes)))
        return
    video_of(args.minutes)
    result = {
        "benchmark": "first question",
        "setup": measurement_facts(torch.device("cuda")) | {"cores": usable_cores()},
        "model": MODEL,
        "spec": args.spec,
        "minutes": args.minutes,
        "runs": run_all(args.runs.split(","), args.spec, args.minutes),
    }
    text = json.dumps(result, indent=2) + "\n"
    if args.out is None:
        print(text)
    else:
        write_atomic(args.out, text.encode())


if __name__ == "__main__":
    main()
