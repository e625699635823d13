"""`load` and `ask`."""

import json
import re
import shutil

import pytest
import torch
from conftest import write_clip
from PIL import Image

import videonsa
from videonsa.errors import BudgetError, ModelError, UsageError, VideoError
from videonsa.inference import engine
from videonsa.inference.context import Context
from videonsa.inference.engine import VideoQA
from videonsa.inference.sampling import GenerationSettings
from videonsa.models.recorder.frames import AttentionRecorder
from videonsa.planning.defaults import change_sampling
from videonsa.video.processing import build_prompt
from videonsa.video.sampling import SamplingSpec


@pytest.fixture(scope="module")
def qa(tiny_folder):
    return videonsa.load(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def six_seconds(tmp_path_factory):
    """At 8 fps, a keyframe every 12 frames."""
    return write_clip(tmp_path_factory.mktemp("six") / "clip.mp4", num_frames=48, fps=8)


def test_an_answer_says_what_was_used(qa, clip_path, tiny_folder):
    answer = qa.ask(clip_path, "What moves?", max_new_tokens=5)
    usage = answer.usage
    assert usage.model == str(tiny_folder)
    assert usage.times == (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
    assert (usage.num_frames, usage.height, usage.width) == (8, 84, 112)
    assert usage.grid == (4, 6, 8)
    assert usage.video_tokens == 48
    text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    text += "<|vision_start|><|vision_end|>What moves?<|im_end|>\n<|im_start|>assistant\n"
    assert usage.prompt_tokens == 48 + len(qa.tokenizer.encode(text))
    assert (usage.attention, usage.context) == ("nsa", 2048)
    assert usage.budget.keys == 2 * 8 + 8
    assert usage.budget.gamma == pytest.approx(2 * 24 / (usage.prompt_tokens - 1))
    assert 1 <= answer.new_tokens <= 5
    assert answer.first_token_seconds > 0
    assert answer.finish == "length"
    json.dumps(answer.to_dict(), allow_nan=False)


def test_tokens_are_chosen_as_asked_else_as_the_checkpoint_states(tiny_folder, clip_path, tmp_path):
    plain = videonsa.load(tiny_folder, device="cpu").ask(clip_path, "?", max_new_tokens=24)
    assert plain.usage.generation == GenerationSettings(max_new_tokens=24)
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    stated = json.loads((tmp_path / "generation_config.json").read_text())
    stated |= {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 100.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(stated | {"max_new_tokens": 24}))
    qa = videonsa.load(tmp_path, device="cpu")
    assert qa.notes == ()
    answer = qa.ask(clip_path, "?", seed=1)
    expected = GenerationSettings(
        max_new_tokens=24, temperature=1e-6, repetition_penalty=100.0, seed=1
    )
    assert answer.usage.generation == expected
    assert answer.text != plain.text
    same = qa.ask(clip_path, "?", temperature=0.0, repetition_penalty=1.0)
    assert same.text == plain.text
    assert same.usage.generation == plain.usage.generation


@pytest.mark.parametrize("width", [1, 3])
def test_an_answer_ends_before_a_stop_string_also_in_a_stream(qa, clip_path, width):
    options = {"max_new_tokens": 24, "temperature": 1.0, "seed": 3}
    whole = qa.ask(clip_path, "?", **options)
    assert (whole.finish, whole.stop, whole.new_tokens) == ("length", None, 24)
    stop = whole.text[9 : 9 + width]
    stream = qa.ask(clip_path, "?", **options, stop=["never in it", stop], stream=True)
    assert "".join(stream) == whole.text[: whole.text.index(stop)]
    answer = stream.answer
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert (answer.finish, answer.stop) == ("stop", stop)
    assert answer.new_tokens < 24
    assert answer.usage.generation.stop == ("never in it", stop)


def test_an_answer_that_holds_no_stop_string_is_whole(qa, clip_path):
    options = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3}
    whole = qa.ask(clip_path, "?", **options)
    # The end of it may be the beginning of the stop string: it is held back, and not lost.
    answer = qa.ask(clip_path, "?", **options, stop=whole.text[-2:] + "never in it")
    assert (answer.text, answer.finish, answer.stop) == (whole.text, "length", None)


def test_a_drawn_answer_is_repeated_by_the_seed_that_it_names(qa, clip_path):
    options = {"max_new_tokens": 8, "temperature": 2.0, "top_k": 100}
    answer = qa.ask(clip_path, "?", **options)
    again = qa.ask(clip_path, "?", **options, seed=answer.usage.generation.seed)
    assert again.text == answer.text
    assert again.usage == answer.usage


def test_a_stream_gives_usage_first_and_the_answer_last(qa, clip_path):
    stream = qa.ask(clip_path, "What moves?", stream=True, max_new_tokens=5)
    assert stream.usage.num_frames == 8
    with pytest.raises(UsageError, match="not complete"):
        _ = stream.answer
    text = "".join(stream)
    assert stream.answer.text == text
    assert text == qa.ask(clip_path, "What moves?", max_new_tokens=5).text


def test_an_error_inside_the_stream_comes_out_of_it(qa, clip_path, monkeypatch):
    stream = qa.ask(clip_path, "What moves?", stream=True, max_new_tokens=2)
    monkeypatch.setattr(type(qa.model), "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(stream)


def test_a_clip_that_is_read_already_gives_the_same_answer(qa, clip_path):
    clip = videonsa.read_video(clip_path)
    options = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3}
    assert qa.ask(clip, "What?", **options).text == qa.ask(clip_path, "What?", **options).text
    with pytest.raises(UsageError, match="read already and fps"):
        qa.ask(clip, "What?", fps=1.0)


def test_a_list_of_images_counts_as_a_folder_of_them(qa, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for index, path in enumerate(paths):
        Image.new("RGB", (200, 150), (40 * index, 90, 200)).save(path)
    options = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3, "max_pixels": 12_544}
    listed, folder = qa.ask(paths, "What?", **options), qa.ask(tmp_path, "What?", **options)
    assert listed.usage == folder.usage
    assert listed.text == folder.text
    with pytest.raises(UsageError, match="a list of no frames"):
        qa.ask([], "What?")


def test_sampling_changes_single_fields(qa, clip_path):
    usage = qa.ask(clip_path, "What?", fps=1.0, max_new_tokens=1).usage
    assert usage.num_frames == 4
    usage = qa.ask(clip_path, "What?", max_frames=2, max_new_tokens=1).usage
    assert usage.grid[0] == 1
    usage = qa.ask(clip_path, "What?", timestamps=(1.0, 3.0), max_new_tokens=1).usage
    assert usage.times == (1.0, 3.0)
    usage = qa.ask(clip_path, "What?", max_tokens=24, max_new_tokens=1).usage
    assert usage.video_tokens <= 24


def test_one_frame_and_one_image_are_served(qa, tmp_path):
    clip = write_clip(tmp_path / "one.mp4", num_frames=1)
    assert qa.ask(clip, "What?", max_new_tokens=1).usage.grid == (1, 6, 8)
    Image.new("RGB", (112, 84)).save(tmp_path / "one.png")
    assert qa.ask(tmp_path / "one.png", "What?", max_new_tokens=1).usage.grid == (1, 6, 8)


def spied_passages(monkeypatch):
    """The ids and the images and videos of every passage that is made from here on."""
    seen = []
    passage = Context.passage

    def spy(self, ids, vision=(), **options):
        seen.append((list(ids), vision))
        return passage(self, ids, vision, **options)

    monkeypatch.setattr(Context, "passage", spy)
    return seen


def test_an_image_is_asked_about_as_an_image(qa, tmp_path, monkeypatch):
    given = spied_passages(monkeypatch)
    path = tmp_path / "photo.png"
    Image.effect_noise((840, 560), 80).convert("RGB").save(path)
    plan = videonsa.plan_video(path, qa.name, device="cpu")
    options = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3}
    answer = qa.ask(path, "What?", **options)
    ids, (image,) = given[0]
    assert (image.kind, image.grid) == ("image", (1, 40, 60))
    assert ids.count(qa.model.config.image_token_id) == 600
    assert qa.model.config.video_token_id not in ids
    assert answer.usage.video_tokens == plan.sampling.num_tokens == 600
    assert answer.usage.grid == plan.sampling.grid
    for same in (Image.open(path), videonsa.read_video(path, sampling=qa.sampling)):
        assert qa.ask(same, "What?", **options).text == answer.text
    assert qa.ask(path, "What?", max_tokens=24, max_new_tokens=1).usage.video_tokens <= 24
    assert qa.ask(path, "What?", max_pixels=12_544, max_new_tokens=1).usage.video_tokens <= 16


def test_an_image_that_exceeds_the_context_says_what_would_fit(qa, tmp_path, monkeypatch):
    def read(video, sampling, *_, **__):
        raise RuntimeError(sampling.max_pixels)

    monkeypatch.setattr(engine, "encode_clip", read)
    Image.new("RGB", (2000, 1500)).save(tmp_path / "photo.png")
    with pytest.raises(BudgetError, match="lower --max-pixels to") as caught:
        qa.ask(tmp_path / "photo.png", "What?")
    pixels = int(str(caught.value).split()[-1])
    with pytest.raises(RuntimeError, match=str(pixels)):
        qa.ask(tmp_path / "photo.png", "What?", max_pixels=pixels)
    with pytest.raises(RuntimeError) as caught:
        qa.ask(tmp_path / "photo.png", "What?", fit=True)
    assert pixels * 0.9 < int(str(caught.value)) <= pixels


def test_frames_in_memory_are_asked_about_as_a_video(qa, clip_path):
    clip = videonsa.read_video(clip_path)
    frames = videonsa.FrameList(clip.frames, times=clip.times)
    options = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3}
    answer = qa.ask(frames, "What?", num_frames=len(clip.times), **options)
    assert answer.usage.times == clip.times
    assert answer.usage.grid == qa.ask(clip_path, "What?", **options).usage.grid
    for no_video in (None, b"", {"a": 1}):
        with pytest.raises(UsageError, match="a video came as"):
            qa.ask(no_video, "What?")
        with pytest.raises(UsageError, match="a video came as"):
            videonsa.plan_video(no_video, qa.name, device="cpu")


def test_a_stretch_keeps_the_seconds_of_the_video(qa, clip_path):
    usage = qa.ask(clip_path, "What?", start=1.0, end=3.0, max_new_tokens=1).usage
    assert 1.0 <= usage.times[0] <= usage.times[-1] < 3.0
    plan = videonsa.plan_video(
        clip_path, qa.name, device="cpu", sampling=SamplingSpec(start=1.0, end=3.0)
    )
    assert plan.sampling.times == usage.times


def test_a_context_that_does_not_fit_is_refused_before_decoding(qa, clip_path, monkeypatch):
    monkeypatch.setattr(
        "videonsa.inference.engine.encode_clip", lambda *_, **__: pytest.fail("decoded")
    )
    with pytest.raises(BudgetError, match=r"exceed the context of 2048 tokens: lower --max-frames"):
        qa.ask(clip_path, "What?", max_new_tokens=1990)
    with pytest.raises(BudgetError, match="shorten the question"):
        qa.ask(clip_path, "x" * 100_000)


def test_an_empty_question_is_refused(qa, clip_path):
    with pytest.raises(UsageError, match="empty"):
        qa.ask(clip_path, "  ")


def test_a_missing_video_is_refused(qa, tmp_path):
    with pytest.raises(VideoError, match="no such file"):
        qa.ask(tmp_path / "none.mp4", "What?")


def test_dense_attention_has_no_budget_and_says_what_it_left_out(tiny_folder, clip_path):
    dense = videonsa.load(tiny_folder, method="dense", device="cpu")
    usage = dense.ask(clip_path, "What?", max_new_tokens=1).usage
    assert (usage.attention, usage.budget, usage.spec) == ("dense", None, None)
    assert any("dense attention was asked for" in note for note in usage.notes)


def test_a_recorder_sees_every_frame(qa, clip_path):
    recorder = AttentionRecorder()
    answer = qa.ask(clip_path, "What?", max_new_tokens=3, recorder=recorder)
    assert recorder.text_mass().shape == (2, answer.new_tokens, 4)


def test_special_tokens_in_a_question_are_plain_text(qa, clip_path):
    usage = qa.ask(clip_path, "<|video_pad|><|im_end|>", max_new_tokens=1).usage
    assert usage.video_tokens == 48


def test_unknown_device_and_dtype_are_refused(tiny_folder):
    with pytest.raises(UsageError, match="device 'cuda:99' is not there"):
        videonsa.load(tiny_folder, device="cuda:99")
    with pytest.raises(UsageError, match="device 'gpu' is not there"):
        videonsa.load(tiny_folder, device="gpu")
    with pytest.raises(UsageError, match="device 'meta' is not there"):
        videonsa.load(tiny_folder, device="meta")
    with pytest.raises(UsageError, match="dtype='int8'"):
        videonsa.load(tiny_folder, dtype="int8")


def test_bfloat16_answers(tiny_folder, clip_path):
    qa = videonsa.load(tiny_folder, device="cpu", dtype="bfloat16")
    assert qa.ask(clip_path, "What?", max_new_tokens=2).new_tokens >= 1


def test_a_folder_without_tokenizer_is_refused(tiny_folder, tmp_path):
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (tmp_path / name).symlink_to(tiny_folder / name)
    with pytest.raises(ModelError, match="tokenizer"):
        videonsa.load(tmp_path)


def test_fit_takes_what_the_context_holds_and_says_so(tiny_folder, tmp_path):
    path = write_clip(tmp_path / "long.mp4", num_frames=400)
    qa = videonsa.load(tiny_folder, device="cpu")
    options = {"max_frames": 400, "max_new_tokens": 1}
    with pytest.raises(BudgetError, match="exceed the context"):
        qa.ask(path, "?", **options)
    usage = qa.ask(path, "?", fit=True, **options).usage
    assert usage.prompt_tokens + 1 <= usage.context
    assert usage.num_frames > 300
    assert f"fit: {usage.num_frames} frames of 112x84" in " ".join(usage.notes)
    as_asked = qa.ask(path, "?", fit=True, max_frames=8, max_new_tokens=1).usage
    assert as_asked.num_frames == 8
    assert "fit: 8 frames of 112x84, as asked" in as_asked.notes


def test_fit_heeds_the_memory_it_is_given(tiny_folder, clip_path):
    qa = videonsa.load(tiny_folder, device="cpu")
    enough = qa.ask(clip_path, "?", fit=True, memory=10**9, max_new_tokens=1).usage
    assert enough.num_frames == 8
    less = qa.ask(clip_path, "?", fit=True, memory=1_500_000, max_new_tokens=1).usage
    assert less.video_tokens < enough.video_tokens
    with pytest.raises(BudgetError, match="the weights take"):
        qa.ask(clip_path, "?", fit=True, memory=900_000)
    with pytest.raises(UsageError, match="memory without fit"):
        qa.ask(clip_path, "?", memory=10**9)


class Exhausted:
    """A model that runs out of memory where it is told to."""

    def __init__(self, model, stage):
        self.model, self.stage, self.calls = model, stage, 0

    def __getattr__(self, name):
        return getattr(self.model, name)

    def _run(self, stage, call, *args, **kwargs):
        if stage == self.stage:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return call(*args, **kwargs)

    def encode_kept(self, parts, *, method=None):
        return self._run("tower", self.model.encode_kept, parts, method=method)

    def __call__(self, **kwargs):
        self.calls += 1
        return self._run("prefill" if self.calls == 1 else "decoding", self.model, **kwargs)


@pytest.mark.parametrize("stage", ["tower", "prefill", "decoding"])
def test_out_of_memory_names_frames_that_would_fit(tiny_folder, clip_path, stage):
    real = videonsa.load(tiny_folder, device="cpu")
    qa = VideoQA(Exhausted(real.model, stage), real.tokenizer)
    with pytest.raises(BudgetError, match="out of memory on cpu") as raised:
        qa.ask(clip_path, "?", max_new_tokens=4)
    message = str(raised.value)
    assert "\n" not in message
    found = re.search(r"(\d+) frames of \d+x\d+, (\d+) video tokens, take about", message)
    assert found, message
    assert int(found[2]) < 48
    pixels = re.search(r"--max-frames (\d+) --max-pixels (\d+)", message)
    assert pixels, message
    advised = {"max_frames": int(pixels[1]), "max_pixels": int(pixels[2])}
    usage = real.ask(clip_path, "?", max_new_tokens=1, **advised).usage
    assert usage.video_tokens == int(found[2])


def test_what_is_shared_among_devices_is_not_planned_for_one(tiny_folder, clip_path):
    real = videonsa.load(tiny_folder, device="cpu")
    shared = Exhausted(real.model, "prefill")
    shared.hf_device_map = {"model.visual": 0, "model.language_model": 1}
    qa = VideoQA(shared, real.tokenizer)
    with pytest.raises(UsageError, match="fit with a device map"):
        qa.ask(clip_path, "?", fit=True)
    with pytest.raises(BudgetError, match="lower --max-frames or --max-pixels"):
        qa.ask(clip_path, "?")


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"fps": 1.0}, [0.0, 2.0, 4.0]),
        ({"timestamps": (0.5, 1.0, 3.0, 5.0)}, [0.5, 3.0]),
        ({"mode": "keyframes", "fps": 1.0}, None),
    ],
)
@pytest.mark.parametrize("read_before", [False, True])
def test_position_ids_count_even_steps_or_the_frames_own_times(
    qa, six_seconds, monkeypatch, sampling, expected, read_before
):
    """Of six seconds at 8 fps; keyframes count as they stand."""
    seen = spied_passages(monkeypatch)
    spec = change_sampling(qa.sampling, **sampling)
    clip = videonsa.read_video(six_seconds, sampling=spec)
    if read_before:
        qa.ask(clip, "What moves?", max_new_tokens=1)
    else:
        qa.ask(six_seconds, "What moves?", sampling=spec, max_new_tokens=1)
    ((_, (video,)),) = seen
    times = video.seconds
    assert list(times) == (list(clip.times[::2]) if expected is None else expected)
    assert build_prompt([clip], "What moves?", tokenizer=qa.tokenizer).video_times == (times,)


def test_the_folder_of_a_run_is_taken_for_its_model_with_a_note(tiny_folder, clip_path, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "run.json").write_text("{}")
    qa = videonsa.load(tmp_path, device="cpu")
    assert qa.notes == (f"{tmp_path} is the folder of a training run: its model/ is taken",)
    assert qa.ask(clip_path, "What moves?", max_new_tokens=1).usage.notes == qa.notes
    assert videonsa.plan_video(clip_path, tmp_path).notes == qa.notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "24GB", "fit": True}, "memory='24GB': want bytes"),
        ({"memory": 0, "fit": True}, "memory=0: want bytes"),
        ({"sampling": 3}, "sampling came as int: want SamplingSpec"),
        ({"recorder": "all"}, "recorder came as str: want Recorder"),
        ({"trace": True}, "trace came as bool: want Trace"),
        ({"system": None}, "system came as NoneType; wanted a str"),
        ({"top_p": "all"}, "top_p='all'"),
        ({"top_k": 2.5}, "top_k=2.5"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
        ({"stop": 3}, "stop=3"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"max_new_tokens": "8"}, "max_new_tokens='8'"),
    ],
)
def test_arguments_of_another_type_are_named(qa, clip_path, options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        qa.ask(clip_path, "What moves?", **options)


@pytest.mark.parametrize("question", [None, 3, b"What?", ["What?"]])
def test_a_question_of_another_type_is_named(qa, clip_path, question):
    with pytest.raises(UsageError, match=f"question came as {type(question).__name__}"):
        qa.ask(clip_path, question)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": []}, "device"),
        ({"device_map": 7}, "device_map=7"),
        ({"device_map": "all"}, "device_map='all'"),
        ({"dtype": 5}, "dtype='5'"),
    ],
)
def test_loading_names_arguments_of_another_type(tiny_folder, options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        videonsa.load(tiny_folder, **options)
