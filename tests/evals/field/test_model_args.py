"""What `--model_args` may say, and how tasks' requests are read."""

import io

import pytest
from PIL import Image

from videonsa.errors import UsageError
from videonsa.evals.field.model_args import ModelArgs
from videonsa.evals.field.requests import messages_of, options_of
from videonsa.evals.field.sample_line import SampleKey
from videonsa.inference.messages import ImagePart, VideoPart
from videonsa.video.sampling import SamplingSpec

KEY = SampleKey("tiny", "test", 3)


def test_arguments_are_read_as_lmms_eval_hands_them_over():
    args = ModelArgs.of(
        {
            "pretrained": 7,  # a folder of that name, which lmms-eval takes for a number
            "method": '"nsa:block_size=64,window_size=256"',
            "fps": 2,
            "max_num_frames": "8",
            "batch_size": "4",
            "device": None,
        }
    )
    assert (args.pretrained, args.fps, args.max_num_frames, args.batch_size) == ("7", 2.0, 8, 4)
    assert args.method == "nsa:block_size=64,window_size=256"
    assert args.identity().keys().isdisjoint(("log", "batch_size", "device"))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            {"attention": "nsa"},
            "attention: no argument of --model videonsa, which takes pretrained",
        ),
        ({"max_batch_size": 4}, "max_batch_size=4: batches have a fixed size"),
        ({"fps": "fast"}, "fps='fast': want a float"),
        ({"max_pixels": 1.5}, "max_pixels=1.5: want an int"),
        ({"batch_size": "auto"}, "batch_size='auto': want an int"),
        ({"retry_failed": 1}, "retry_failed=1: want a bool"),
    ],
)
def test_other_arguments_are_refused_in_one_line(given, reason):
    with pytest.raises(UsageError, match=reason) as error:
        ModelArgs.of(given)
    assert "\n" not in str(error.value)


def test_a_rate_has_a_most_of_frames_which_alone_is_their_number():
    base = SamplingSpec(image_pixels=(3136, 10**6))
    rate = ModelArgs(fps=2.0, max_num_frames=64, min_num_frames=8).sampling(base)
    assert (rate.fps, rate.num_frames, rate.max_frames, rate.min_frames) == (2.0, None, 64, 8)
    even = ModelArgs(max_num_frames=64, max_video_tokens=4096).sampling(base)
    assert (even.fps, even.num_frames, even.max_tokens) == (None, 64, 4096)
    assert even.image_pixels == (3136, 10**6)
    pixels = ModelArgs(min_pixels=60_000).sampling(base)
    assert (pixels.pixel_range, pixels.image_pixels) == ((60_000, 60_000), None)
    assert ModelArgs().sampling(base) == base
    with pytest.raises(UsageError, match="min_num_frames without fps"):
        ModelArgs(min_num_frames=8).sampling(base)
    with pytest.raises(UsageError, match="min_pixels=4000 exceeds max_pixels=2000"):
        ModelArgs(min_pixels=4000, max_pixels=2000).sampling(base)


def test_a_system_prompt_may_lie_in_a_file(tmp_path):
    (tmp_path / "prompt.txt").write_text("Be brief.\n")
    assert ModelArgs(system_prompt=str(tmp_path / "prompt.txt")).system() == "Be brief."
    assert ModelArgs(system_prompt="Be exact.").system() == "Be exact."
    long = "Be exact. " * 500  # longer than a path may be
    assert ModelArgs(system_prompt=long).system() == long
    in_file = ModelArgs(system_prompt=str(tmp_path / "prompt.txt"))
    assert in_file.identity()["system_prompt"] == "Be brief."  # the file may change between runs


def test_a_chat_of_a_task_becomes_messages():
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "PNG")
    content = [
        {"type": "video", "url": "a.mp4", "start_time": 1, "end_time": 2.5},
        {"type": "video", "url": {"path": "b.mp4", "video_start": 3.0}},
        {"type": "image", "url": {"bytes": file.getvalue(), "path": None}},
        {"type": "text", "text": "What?"},
    ]
    chat = [{"role": "system", "content": "Of the task."}, {"role": "user", "content": content}]
    system, user = messages_of(chat, system=None)
    assert (system.role, system.parts) == ("system", ("Of the task.",))
    first, second, image, text = user.parts
    assert isinstance(first, VideoPart) and (first.start, first.end) == (1.0, 2.5)
    assert (second.source, second.start, second.end) == ("b.mp4", 3.0, None)
    assert isinstance(image, ImagePart) and image.source.size == (8, 6) and text == "What?"
    replaced, user = messages_of(chat, system="Mine.")
    assert (replaced.parts, user.role) == (("Mine.",), "user")
    cut = {"type": "image", "url": {"bytes": file.getvalue()[:45]}}
    with pytest.raises(OSError, match="truncated"):  # here, where it fails one sample
        messages_of([{"role": "user", "content": [cut]}], system=None)
    with pytest.raises(UsageError, match="a message holds audio"):
        messages_of([{"role": "user", "content": [{"type": "audio", "url": "a"}]}], system=None)


def test_what_a_task_asks_of_generation_is_done_said_or_refused():
    def asked(**given):
        return options_of(given, key=KEY, repetition_penalty=None)

    assert asked(until=["\n\n"], max_new_tokens=16) == (
        {"max_new_tokens": 16, "temperature": 0.0},
        [r"until='\n\n', which lmms-eval fills in, is ignored, as by its Qwen2.5-VL"],
    )
    assert asked(until="</end>", num_beams=1, top_p=None) == (
        {"max_new_tokens": 128, "temperature": 0.0, "stop": ("</end>",)},
        [],
    )
    drawn, notes = asked(temperature=0.7, top_p=0.9, image_aspect_ratio="pad")
    assert notes == ["image_aspect_ratio='pad' is ignored"]
    assert (drawn["temperature"], drawn["top_p"]) == (0.7, 0.9)
    assert drawn["seed"] == asked(temperature=0.7)[0]["seed"]
    assert asked(temperature=0.7, do_sample=False)[0]["temperature"] == 0.0
    with pytest.raises(UsageError, match="num_beams=4: want 1"):
        asked(num_beams=4)
    assert options_of({}, key=KEY, repetition_penalty=1.05)[0]["repetition_penalty"] == 1.05
