"""Tokens one by one, and text that never cuts a character."""

import weakref

import pytest
import torch

import videonsa
from videonsa.errors import BudgetError, ModelError
from videonsa.inference.context import Context, EncodedVision
from videonsa.inference.decoding import decode
from videonsa.inference.generation import TextPieces, out_of_memory
from videonsa.inference.sampling import GenerationSettings
from videonsa.models.cache import VideoNSACache
from videonsa.models.methods import Dense
from videonsa.video.processing import build_prompt

TEXTS = [
    "a red circle",
    "na\u00efve \u2192 d\u00e9j\u00e0 vu",
    "\u65e5\u672c\u8a9e\u306e\u52d5\u753b\u3067\u3059",
    "\U0001f3ac\U0001f98a two \U0001f469\u200d\U0001f467 three",
    "\n\n x  y",
]
FOX = "\U0001f98a"


@pytest.fixture(scope="module")
def qa(tiny_folder):
    return videonsa.load(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def prompt(qa, clip_path):
    return build_prompt([videonsa.read_video(clip_path)], "What moves?", tokenizer=qa.tokenizer)


def tokens_of(model, prompt, **options):
    """The tokens of an answer to a prompt with its pixels."""
    first = {
        "input_ids": prompt.input_ids,
        "pixel_values_videos": prompt.pixel_values_videos,
        "video_grid_thw": prompt.video_grid_thw,
        "video_times": prompt.video_times,
    }
    return (token for (token,) in decode(model, first, VideoNSACache(), **options))


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_hold_whole_characters(qa, text):
    pieces = TextPieces(qa.tokenizer.decode)
    ids = qa.tokenizer.encode(text, add_special_tokens=False)
    shown = [pieces.push(token) for token in ids]
    assert "".join(shown) == text
    assert not any("\ufffd" in piece for piece in shown)
    assert pieces.flush() == ""


def test_an_unfinished_character_comes_with_the_flush(qa):
    pieces = TextPieces(qa.tokenizer.decode)
    ids = qa.tokenizer.encode(FOX, add_special_tokens=False)
    assert len(ids) > 1, "the test needs a character of several tokens"
    assert "".join(pieces.push(token) for token in ids[:-1]) == ""
    assert pieces.flush() == qa.tokenizer.decode(ids[:-1])


def test_greedy_tokens_equal_those_of_generate(qa, prompt):
    settings = GenerationSettings(max_new_tokens=12)
    ours = list(tokens_of(qa.model, prompt, settings=settings, stop_ids=frozenset()))
    theirs = qa.model.generate(
        input_ids=prompt.input_ids,
        attention_mask=prompt.attention_mask,
        pixel_values_videos=prompt.pixel_values_videos,
        video_grid_thw=prompt.video_grid_thw,
        video_times=prompt.video_times,
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
    )
    assert ours == theirs[0, prompt.input_ids.shape[1] :].tolist()


def test_a_stop_id_ends_the_answer_and_is_the_last_token(qa, prompt):
    free = list(
        tokens_of(
            qa.model, prompt, settings=GenerationSettings(max_new_tokens=3), stop_ids=frozenset()
        )
    )
    stopped = list(
        tokens_of(
            qa.model,
            prompt,
            settings=GenerationSettings(max_new_tokens=3),
            stop_ids=frozenset({free[0]}),
        )
    )
    assert stopped == free[:1]


def test_samples_of_a_batch_are_decoded_as_alone_until_the_last_one_ends(qa):
    prompts = torch.tensor([[40, 41, 42, 43], [70, 60, 50, 40]])
    settings = GenerationSettings(max_new_tokens=6)

    def decoded(ids, stop_ids=frozenset()):
        steps = decode(
            qa.model, {"input_ids": ids}, VideoNSACache(), settings=settings, stop_ids=stop_ids
        )
        return list(map(list, zip(*steps, strict=True)))

    together = decoded(prompts)
    assert together == [*decoded(prompts[:1]), *decoded(prompts[1:])]
    assert together[0] != together[1]
    both = {together[0][1], together[1][3]}
    ends = [next(i for i, token in enumerate(row) if token in both) for row in together]
    assert decoded(prompts, both) == [row[: max(ends) + 1] for row in together]


def test_the_embeds_of_a_prompt_are_let_go_of_after_the_prefill(qa, prompt):
    ids, videos = prompt.input_ids, prompt.pixel_values_videos
    grid = tuple(prompt.video_grid_thw[0].tolist())
    with torch.inference_mode():
        features = qa.model.encode_vision(videos, [grid])
    context = Context(qa.model)
    passage = context.passage(ids, [EncodedVision("video", features, grid, prompt.video_times[0])])
    held = weakref.ref(passage.embeds)
    tokens = context.answer(passage, settings=GenerationSettings(), stop_ids=frozenset())
    del passage
    next(tokens)
    assert held() is None


def test_drawing_is_repeatable_with_a_seed_and_varies_without(qa, prompt):
    def draw(seed):
        settings = GenerationSettings(max_new_tokens=8, temperature=2.0, seed=seed)
        return list(tokens_of(qa.model, prompt, settings=settings, stop_ids=frozenset()))

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(4)}) > 1


def test_no_placeholder_of_a_frame_is_part_of_an_answer(qa, prompt):
    config = qa.model.config
    favoured = [config.image_token_id, config.video_token_id, 40]

    def favour(_, __, output):
        return output.index_fill(-1, torch.tensor(favoured), 100.0)

    for drawing in ({}, {"temperature": 1.0, "seed": 0}):
        settings = GenerationSettings(max_new_tokens=6, **drawing)
        with qa.model.lm_head.register_forward_hook(favour):
            tokens = tokens_of(qa.model, prompt, settings=settings, stop_ids=frozenset())
            assert list(tokens) == [40] * 6


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_memory_that_runs_out_is_a_budget_error(error):
    with (
        pytest.raises(BudgetError, match="out of memory on cpu with a prompt of 9 tokens"),
        out_of_memory(9, torch.device("cpu")),
    ):
        raise error


def test_other_errors_come_through():
    with (
        pytest.raises(RuntimeError, match="shapes differ"),
        out_of_memory(9, torch.device("cpu")),
    ):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize("step", [1, 3])
def test_logits_that_are_not_finite_end_the_answer_and_name_its_step(tiny_folder, prompt, step):
    model = videonsa.load(tiny_folder, device="cpu").model
    head, calls = model.lm_head, []

    def spoiled(_, __, output):
        calls.append(1)
        return output * float("nan") if len(calls) == step else output

    with head.register_forward_hook(spoiled):
        tokens = tokens_of(
            model, prompt, settings=GenerationSettings(max_new_tokens=4), stop_ids=frozenset()
        )
        with pytest.raises(ModelError, match=f"token {step} of the answer are not finite"):
            list(tokens)
    assert len(calls) == step


class Counted(Dense):
    """Dense, and how many tokens each of its steps had."""

    def __init__(self):
        self.tokens = []

    def attend(self, layer, hidden, q, k, v, step):
        if layer.layer_idx == 0:
            self.tokens.append(q.shape[1])
        return super().attend(layer, hidden, q, k, v, step)


def test_prompt_and_every_token_attend_by_the_method(qa):
    method, settings = Counted(), GenerationSettings(max_new_tokens=3)
    ids = {"input_ids": torch.tensor([[40, 41, 42, 43]])}
    list(decode(qa.model, ids, VideoNSACache(), settings=settings, stop_ids=set(), method=method))
    assert method.tokens == [4, 1, 1]
