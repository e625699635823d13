"""`vllm serve` with the embedded model, asked by the openai client about videos and images."""

import base64
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
from conversations import image
from PIL import Image

from videonsa import load
from videonsa.inference.messages import ImagePart, Message, VideoPart, session_for
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


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A PNG whose sides are no multiples of a patch."""
    file = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(image(5, height=123, width=200)[1]).save(file)
    return file


@pytest.fixture(scope="module")
def qa():
    return load(dtype="float32")


def shown(file):
    kind = "image" if file.suffix == ".png" else "video"
    data = base64.b64encode(file.read_bytes()).decode()
    url = f"data:{kind}/{file.suffix[1:]};base64,{data}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def ask(client, parts, **options):
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else shown(part) for part in parts
    ]
    return client.chat.completions.create(
        model="videonsa", temperature=0, max_tokens=12,
        messages=[{"role": "user", "content": content}], extra_body=options,
    )  # fmt: skip


def check_answered_as_in_the_engine(found, qa, parts):
    engine = session_for(qa, [Message("user", parts)])
    assert found.usage.prompt_tokens == len(engine.prompt_ids())
    answer = engine.session.ask(engine.question, max_new_tokens=12, temperature=0)
    assert found.choices[0].message.content == answer.text


@pytest.mark.parametrize(
    ("question", "wishes"),
    [
        ("What flashed?", {}),
        ("Which shape is in the first scene?", {"fps": 1.0}),
        ("What flashed?", {"max_frames": 8, "max_pixels": 56 * 56}),
    ],
)
def test_a_video_is_sampled_and_answered_as_in_the_engine(server, qa, clip, question, wishes):
    client, log = server
    found = ask(client, [clip, question], media_io_kwargs={"video": wishes})
    parts = [VideoPart(source=clip, changes=wishes), question]
    check_answered_as_in_the_engine(found, qa, parts)
    assert "video: " in log.read_text()


def test_an_image_is_answered_as_in_the_engine(server, qa, picture):
    client, _ = server
    found = ask(client, [picture, "Which shape is blue?"])
    parts = [ImagePart(source=picture), "Which shape is blue?"]
    check_answered_as_in_the_engine(found, qa, parts)


def test_an_image_and_a_video_stand_where_the_chat_has_them(server, qa, picture, clip):
    client, _ = server
    texts = ("This was sent with", "What happens in this video?")
    found = ask(client, [picture, texts[0], clip, texts[1]])
    parts = [ImagePart(source=picture), texts[0], VideoPart(source=clip), texts[1]]
    check_answered_as_in_the_engine(found, qa, parts)


def test_a_word_that_no_sampling_knows_is_refused(server, clip):
    client, _ = server
    with pytest.raises(openai.APIStatusError, match="want some of fps"):
        ask(client, [clip, "What flashed?"], media_io_kwargs={"video": {"frames": 3}})
