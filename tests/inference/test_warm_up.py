"""What a GPU needs is prepared beside the reading of a video, and no question depends on it."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import videonsa
from videonsa.bench.random_model import TINY, random_model
from videonsa.inference import warm_up
from videonsa.inference.warm_up import OF_RELEASED, Prompt, WarmUp, usual_prompts
from videonsa.models.decoding.steps import SIZES
from videonsa.models.methods import ReleasedNSA
from videonsa.ops.compilation import watch_compilation

SCRIPT = Path(__file__).with_name("reading_shapes.py")
PROMPT = Prompt(15, (4, 16, 16), 20)
OTHER = Prompt(15, (8, 16, 16), 20)


@pytest.fixture(scope="module")
def model():
    return random_model(TINY, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def prepared(monkeypatch):
    """Prompts and sizes that were prepared, as if the model were on a GPU."""
    calls = []
    monkeypatch.setattr(warm_up, "can_warm_up", lambda model: True)
    monkeypatch.setattr(
        warm_up,
        "_prepare",
        lambda model, prompts, *, sizes, **_: calls.append((prompts, tuple(sizes))),
    )
    return calls


def test_on_a_cpu_nothing_is_prepared(model, monkeypatch):
    monkeypatch.setattr(warm_up, "_prepare", lambda *_, **__: pytest.fail("it was"))
    with WarmUp(model).beside(PROMPT):
        pass


def test_a_model_on_several_devices_is_left_alone(model, monkeypatch):
    monkeypatch.setattr(model, "hf_device_map", {"a": 0, "b": 1}, raising=False)
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert not warm_up.can_warm_up(model)
    monkeypatch.setattr(model, "hf_device_map", {"": 0})
    assert warm_up.can_warm_up(model)


def test_each_prompt_is_prepared_once_and_small_steps_are_taken_the_first_time(model, prepared):
    warm = WarmUp(model)
    for prompt in (PROMPT, PROMPT, OTHER):
        with warm.beside(prompt):
            pass
    assert prepared == [([PROMPT], SIZES[:1]), ([OTHER], ())]


def test_it_goes_on_beside_what_is_inside_and_is_done_at_the_end(model, monkeypatch):
    inside, done = threading.Event(), []

    def prepare(*_, **__):
        assert inside.wait(10), "it would have to go on beside what is inside"
        done.append(threading.current_thread().name)

    monkeypatch.setattr(warm_up, "can_warm_up", lambda model: True)
    monkeypatch.setattr(warm_up, "_prepare", prepare)
    with WarmUp(model).beside(PROMPT):
        inside.set()
    assert done == ["warm-up"]


def test_an_error_is_told_in_one_line_and_it_is_tried_again(model, prepared, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no kernel\nimage")

    warm = WarmUp(model)
    with monkeypatch.context() as patch:
        patch.setattr(warm_up, "_prepare", fail)
        with warm.beside(PROMPT):
            pass
    assert warm.notes == ("the GPU could not be prepared beforehand: no kernel image",)
    with warm.beside(PROMPT):
        pass
    assert warm.notes == ()
    assert prepared == [([PROMPT], SIZES[:1])]


def test_a_question_goes_on_without_what_takes_too_long(model, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(warm_up, "can_warm_up", lambda model: True)
    monkeypatch.setattr(warm_up, "_prepare", lambda *_, **__: released.wait(10))
    monkeypatch.setattr(warm_up, "LONGEST_WAIT", 0.01)
    warm = WarmUp(model)
    with warm.beside(PROMPT):
        pass
    assert warm.notes == ("the GPU was not prepared 0 s after the video was read",)
    released.set()


def test_what_fails_inside_does_not_wait_for_it(model, monkeypatch):
    released, ended = threading.Event(), threading.Event()
    seen = []

    def prepare(*_, stopped, **__):
        released.wait(10)
        seen.append(stopped.is_set())
        ended.set()

    monkeypatch.setattr(warm_up, "can_warm_up", lambda model: True)
    monkeypatch.setattr(warm_up, "_prepare", prepare)
    with pytest.raises(KeyboardInterrupt), WarmUp(model).beside(PROMPT):
        raise KeyboardInterrupt
    released.set()
    assert ended.wait(10)
    assert seen == [True]


def test_a_question_tells_what_failed_and_is_answered(tiny_folder, clip_path, monkeypatch):
    qa = videonsa.load(tiny_folder, device="cpu")
    before = qa.ask(clip_path, "What moves?", max_new_tokens=2)
    prompts = []

    def fail(model, wanted, **_):
        prompts.extend(wanted)
        raise RuntimeError("out of luck")

    monkeypatch.setattr(warm_up, "can_warm_up", lambda model: True)
    monkeypatch.setattr(warm_up, "_prepare", fail)
    answer = qa.ask(clip_path, "What moves?", max_new_tokens=2)
    assert answer.text == before.text
    assert "the GPU could not be prepared beforehand: out of luck" in answer.usage.notes
    (prompt,) = prompts
    usage = answer.usage
    assert prompt.grid == usage.grid
    assert prompt.before + usage.video_tokens + prompt.after == usage.prompt_tokens
    session = qa.open(clip_path)
    assert prompts[-1] == prompt._replace(after=0)
    assert session.num_tokens == prompt.before + usage.video_tokens


def test_the_small_steps_are_steps_of_the_model(model):
    with torch.inference_mode():
        warm_up._encode_little(model)
        warm_up._read_little(model, SIZES[:2])


def test_prompts_for_the_released_preset_have_numbers_that_are_and_are_not_multiples_of_16():
    lengths = [x.before + 64 * x.grid[0] + x.after for x in OF_RELEASED]
    assert lengths == [291, 320, 1009, 1024]
    shape = replace(TINY, hidden_size=28 * 16, num_heads=28, num_kv_heads=4)
    shape = replace(shape, vision=replace(shape.vision, out_hidden_size=28 * 16))
    model = random_model(shape, device=torch.device("cpu"), dtype=torch.float32)
    model.method = ReleasedNSA()
    with torch.inference_mode():
        warm_up._read_shape(model, OF_RELEASED[0])  # reads the values of its masks, and can


def test_usual_prompts_reach_from_short_ones_to_the_context():
    prompts = usual_prompts(131_072)
    lengths = [x.before + x.grid[0] * x.grid[1] * x.grid[2] // 4 + x.after for x in prompts]
    assert min(lengths) < 256
    assert 0.98 * 131_072 < max(lengths) <= 131_072
    assert len(prompts) == len(set(prompts))


@pytest.fixture(scope="module")
def found():
    """Told by a process of its own: kernels of this one may be interpreted."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


def test_a_model_without_values_meets_every_kernel_of_a_prompt(found):
    assert found["device"] == "meta"
    assert found["names"] == [
        "_compressed_kernel",
        "_importance_kernel",
        "_items_kernel",
        "_list_kernel",
        "_merge_kernel",
        "_partial_kernel",
        "_plan_kernel",
        "_poison_kernel",
        "_pool_kernel",
        "_selected_kernel",
        "_top_blocks_kernel",
        "_window_kernel",
    ]
    assert "_top_groups_kernel" in found["only long"]
    assert found["again"], "the same prompt has the same kernels"


def test_usual_prompts_have_nearly_all_kernels_of_others(found):
    assert found["lacking"] <= 0.15 * found["of"]
    assert found["usual"] < 60


def test_where_no_kernel_depends_on_lengths_there_is_no_such_model(found):
    none = ("dense", "fastv", "released", "reference", "float32")
    assert found["without"] == dict.fromkeys(none, True)
    assert found["behind"] == "nsa", "of a method by which tokens leave, it is that which attends"


@pytest.mark.gpu
def test_a_prompt_that_was_prepared_compiles_nothing(tmp_path, monkeypatch):
    from videonsa.bench.random_model import one_layer_model
    from videonsa.models.cache import VideoNSACache
    from videonsa.models.shape import published_shape

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    shape = published_shape("Qwen/Qwen2.5-VL-7B-Instruct")
    model = one_layer_model(shape, device=torch.device("cuda"))
    model.method = warm_up.NSA()
    prompt = Prompt(15, (300, 16, 16), 21)
    done = warm_up.warm_up(model, prompts=[prompt])
    assert done.kernels > 0
    assert warm_up.warm_up(model, prompts=[prompt]).kernels == 0
    with watch_compilation() as watch, torch.inference_mode():
        warm_up._read_shape(model, prompt)
        ids = torch.full((1, 1), 1, device="cuda")
        model(input_ids=ids, past_key_values=VideoNSACache(), logits_to_keep=1)
    assert watch.compiled.count == 0
