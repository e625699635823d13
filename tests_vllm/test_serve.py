"""`vllm serve` with the embedded model, asked by the openai client about a video file."""

import base64
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest

from videonsa import load
from videonsa.inference.messages import Message, VideoPart, session_for
from videonsa.models.locate import EMBEDDED, locate_model

SECONDS = 240
OPTIONS = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "2048",
           "--max-num-batched-tokens", "64", "--served-model-name", "videonsa",
    "--trust-request-mm-kwargs",
           "--media-io-kwargs", '{"video": {"video_backend": "videonsa"}}')  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from videonsa.cli.main import main

    folder = tmp_path_factory.mktemp("clips")
    assert main(["demo", "--out", str(folder)]) in (0, None)
    return folder / "clip.mp4"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "serve.log"
    command = (str(Path(sys.executable).with_name("vllm")), "serve", str(locate_model(EMBEDDED)))
    with log.open("w") as out:
        process = subprocess.Popen(
            (*command, "--host", "127.0.0.1", "--port", str(port), *OPTIONS),
            env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                client.models.list()
                break
            except openai.APIConnectionError:
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(1)
        yield client, log
    finally:
        process.terminate()
        process.wait(30)


def ask(client, clip, question, **options):
    data = base64.b64encode(clip.read_bytes()).decode()
    video = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
    return client.chat.completions.create(
        model="videonsa", temperature=0, max_tokens=12,
        messages=[{"role": "user", "content": [video, {"type": "text", "text": question}]}],
        extra_body=options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("question", "wishes"),
    [
        ("What flashed?", {}),
        ("Which shape is in the first scene?", {"fps": 1.0}),
        ("What flashed?", {"max_frames": 8, "max_pixels": 56 * 56}),
    ],
)
def test_a_video_is_sampled_and_answered_as_in_the_engine(server, clip, question, wishes):
    client, log = server
    found = ask(client, clip, question, media_io_kwargs={"video": wishes})
    qa = load(dtype="float32")
    parts = [VideoPart(source=clip, changes=wishes), question]
    engine = session_for(qa, [Message("user", parts)])
    assert found.usage.prompt_tokens == len(engine.prompt_ids())
    answer = engine.session.ask(engine.question, max_new_tokens=12, temperature=0)
    assert found.choices[0].message.content == answer.text
    assert "video: " in log.read_text()


def test_a_word_that_no_sampling_knows_is_refused(server, clip):
    client, _ = server
    with pytest.raises(openai.APIStatusError, match="want some of fps"):
        ask(client, clip, "What flashed?", media_io_kwargs={"video": {"frames": 3}})
