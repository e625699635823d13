"""Sparse prefill in a model: text, an image and a video; then decoding over the whole cache."""

import json
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from allocations import allocations
from block_list_cases import pairs_of
from tiny_models import END, IMAGE, START, left_padded, prompt, tiny, video

import videonsa
from videonsa.errors import UsageError
from videonsa.inference import decoding
from videonsa.inference.context import Context
from videonsa.inference.sampling import GenerationSettings
from videonsa.models.cache import VideoNSACache
from videonsa.models.costs import AttentionCall
from videonsa.models.decoding.reasons import why_not_static
from videonsa.models.methods import AttentionMethod, Dense, parse_method
from videonsa.models.methods.flexprefill import FlexPrefill
from videonsa.models.methods.head_patterns import HeadPatterns
from videonsa.models.methods.minference import PUBLISHED_FILE, MInference
from videonsa.models.methods.tri_shape import TriShape
from videonsa.models.methods.xattention import XAttention
from videonsa.models.recorder.protocol import Recorder
from videonsa.ops.estimators.vertical_slash import vertical_slash_lists
from videonsa.rendered.clips import make_scene, scene_seed, write_video

TRI_SHAPE = TriShape(n_init=4, n_local=20, n_last=6)
MINFERENCE = MInference(patterns=None, vertical=30, slash=50)
FLEXPREFILL = FlexPrefill(gamma=0.3, tau=0.0, min_budget=1, block_size=64)
XATTENTION = XAttention(threshold=0.5, block_size=64)
METHODS = (TRI_SHAPE, MINFERENCE, FLEXPREFILL, XATTENTION)
NAMES = [method.name for method in METHODS]
CALL = AttentionCall(
    prompt_tokens=8192,
    chunk_tokens=8192,
    video_tokens=8000,
    num_frames=10,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    value_bytes=2,
)


@dataclass(frozen=True)
class Masked(AttentionMethod):
    """Attends by a mask of all pairs: what a sparse method does, written out."""

    name = "masked"
    like: AttentionMethod = TRI_SHAPE

    def attend(self, layer, hidden, q, k, v, step):
        num_tokens = q.shape[1]
        i, j = torch.arange(num_tokens)[:, None], torch.arange(num_tokens)
        if self.like is TRI_SHAPE:
            mask = (j < 4) | (i - j < 20) | (i >= num_tokens - 6)
        else:
            mask = pairs_of(self.like.choose(layer, q[0], k[0]), num_tokens)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask = mask & (j <= i)
        return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2)


@pytest.fixture(scope="module")
def model():
    return tiny(attention="dense")


@pytest.fixture(scope="module")
def asked():
    """Text, an image of 6 tokens, a video of 240 and a question: 258 tokens."""
    inputs = prompt(60)
    picture = {"pixel_values": torch.randn(24, 1176), "image_grid_thw": torch.tensor([[1, 4, 6]])}
    before = torch.tensor([[21, START, *[IMAGE] * 6, END, 22]])
    return inputs | picture | {"input_ids": torch.cat([before, inputs["input_ids"]], 1)}


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_a_prompt_attends_as_its_mask_written_out(model, asked, method):
    """After mRoPE, with two query heads to a KV head."""
    with torch.inference_mode():
        sparse = model(**asked, method=method).logits
        by_mask = model(**asked, method=Masked(method)).logits
        dense = model(**asked, method="dense").logits
    torch.testing.assert_close(sparse, by_mask, atol=1e-5, rtol=1e-4)
    assert (sparse - dense).abs().max() > 1e-3


@pytest.mark.parametrize(
    "text",
    [
        "tri_shape",
        "tri_shape:n_local=258",
        "minference",
        "flexprefill",
        "flexprefill:gamma=1,min_budget=1,block_size=64",
        "xattention:threshold=1",
        "xattention:threshold=0.1,dense_layers=2",
    ],
)
def test_at_the_limit_a_prompt_is_dense(model, asked, text):
    """The published settings too, as the prompt is shorter than their windows."""
    with torch.inference_mode():
        sparse = model(**asked, method=parse_method(text)).logits
        dense = model(**asked, method="dense").logits
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_a_decoded_token_attends_to_the_whole_cache(model, asked, method):
    with torch.inference_mode():
        cache = model(**asked, method=method, use_cache=True).past_key_values
        assert cache.get_seq_length() == asked["input_ids"].shape[1]
        token = torch.tensor([[33]])
        dense = model(token, past_key_values=cache.fork(), method="dense").logits
        assert torch.equal(model(token, past_key_values=cache, method=method).logits, dense)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_what_is_no_whole_prompt_of_one_sample_is_refused(model, method):
    """In one line, and never read densely in silence."""
    one = prompt(3)
    ids = one["input_ids"]
    begun = VideoNSACache()
    model(ids[:, :1], past_key_values=begun, method=method)
    batch = left_padded([one, prompt(4)])
    refused = {
        "5 tokens read before|1 tokens read before": {"input_ids": ids[:, 1:], "cache": begun},
        "a batch of 2 and padding": batch,
        "^rows_per_chunk=8: .* chooses keys by the last rows": one | {"rows_per_chunk": 8},
        "takes no packed samples": {
            "input_ids": torch.arange(40, 50)[None],
            "cu_seqlens": torch.tensor([0, 4, 10]).int(),
        },
    }
    for message, inputs in refused.items():
        cache = inputs.pop("cache", None)
        more = video(3) if cache is not None else {}
        with pytest.raises(UsageError, match=message) as caught:
            model(**inputs, **more, past_key_values=cache, method=method)
        assert "\n" not in str(caught.value)
        assert "released" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_answers_are_weighed_as_they_would_be_decoded(model, method):
    """Token by token: several at once after a prompt are refused."""
    context = Context(model, method=method)
    ids = list(range(40, 90))
    found = context.likeliest(context.passage(ids), [[20, 21, 22], [23, 24, 25]])
    scores = []
    for answer in ([20, 21, 22], [23, 24, 25]):
        one, total = Context(model, method=method), 0.0
        logits = one.read(one.passage(ids))
        for token in answer:
            total += float(logits[0].log_softmax(-1)[token])
            logits = one.read(one.passage([token]))
        scores.append(total)
    assert found == scores.index(max(scores))


def test_a_question_after_a_prompt_is_refused_by_static_steps_too(model, monkeypatch):
    monkeypatch.setattr(decoding, "why_not_captured", lambda *given: why_not_static(*given[:3]))
    context = Context(model, method=XATTENTION)
    context.read(context.passage(list(range(40, 90))))
    settings, question = GenerationSettings(max_new_tokens=2), [20, 21, 22]
    for asked in (
        lambda: context.answer(context.passage(question), settings=settings, stop_ids=set()),
        lambda: context.answer_each([question], settings=settings, stop_ids=set()),
        lambda: context.likeliest_each([question], [[[23], [24]]]),
    ):
        with pytest.raises(UsageError, match="3 tokens with 50 tokens read before"):
            list(asked())


class Pairs(Recorder):
    """Of each layer of the prompt."""

    def __init__(self):
        self.pairs = []

    def record(self, layer, q, k, attended):
        self.pairs.append(attended.pairs)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_pairs_that_were_computed_are_told(model, method):
    recorder = Pairs()
    with torch.inference_mode():
        cache = model(torch.arange(520)[None] % 80 + 20, method=method, recorder=recorder)
    dense = 4 * 520 * 521 // 2
    assert all(dense / 5 < int(pairs) < dense for pairs in recorder.pairs)
    assert cache.past_key_values.computed.total() == sum(map(int, recorder.pairs)) / 4


@pytest.mark.parametrize(
    "text", ["tri_shape:n_init=4,n_local=20,n_last=6", "minference:patterns=none,slash=50"]
)
def test_a_session_reads_all_for_each_question(tiny_folder, clip_path, text):
    qa = videonsa.load(tiny_folder, method=text, device="cpu")
    wanted = [qa.ask(clip_path, question, max_new_tokens=4) for question in ("What?", "Where?")]
    session = qa.open(clip_path)
    for question, alone in zip(("What?", "Where?"), wanted, strict=True):
        answer = session.ask(question, fresh=True, max_new_tokens=4)
        assert answer.text == alone.text
        assert answer.usage.cached_tokens == 0
    assert wanted[0].usage.attention == text.partition(":")[0]


def test_the_embedded_model_tells_the_share_of_attention_and_answers(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(make_scene(scene_seed("test", 3), duration=24.0, num_objects=3), path)
    shares, answers = [], set()
    sparse = "minference:patterns=none,vertical=30,slash=100"
    for text in ("minference", sparse):
        answer = videonsa.load("embedded", method=text, device="cpu").ask(path, "What flashed?")
        shares.append(answer.usage.computed.attention)
        answers.add(answer.text)
    assert shares[0] == 1, "its 408 tokens are fewer than the published sizes"
    assert 0.4 < shares[1] < 0.8
    assert len(answers) == 1


def test_they_are_planned_as_they_are_asked(tiny_folder, clip_path):
    for text in ("tri_shape:n_init=4,n_local=20,n_last=6", "minference"):
        plan = videonsa.plan_video(clip_path, tiny_folder, method=text)
        dense = videonsa.plan_video(clip_path, tiny_folder, method="dense")
        assert plan.memory.total >= dense.memory.total
        assert plan.spec == parse_method(text).parameters()
    assert TriShape().list_bytes(CALL) < MINFERENCE.list_bytes(CALL) / 4
    assert TriShape().prompt_pairs(CALL) < CALL.num_layers * 8192 * 8193 // 2
    assert TriShape().operations(CALL) < Dense().operations(CALL)
    assert MINFERENCE.prompt_pairs(CALL) is None


def test_choosing_columns_and_offsets_holds_no_more_than_plans_count():
    q, k = (torch.randn(8192, heads, 16).bfloat16() for heads in (4, 2))
    for slash in (100, 6096):  # few tiles, and all
        with allocations(torch.Tensor) as counted:
            lists = vertical_slash_lists(q, k, [(1000, slash)] * 4)
        planned = MInference(patterns=None).choosing_bytes(CALL)
        assert planned / 4 < counted.peak <= planned
        assert lists.tiles.nbytes <= MINFERENCE.list_bytes(CALL)


def test_published_patterns_are_those_of_the_text_model():
    found = HeadPatterns.read(PUBLISHED_FILE)
    assert found.shape == (28, 28)
    counts = {}
    for layer in found.sizes:
        for pair in layer:
            counts[pair] = counts.get(pair, 0) + 1
    assert counts == {
        (1000, 6096): 411,
        (3500, 100): 202,
        (30, 800): 91,
        (500, 700): 50,
        (100, 800): 24,
        (100, 750): 6,
    }
    assert found.sizes[0][0] == (3500, 100)
    assert found.sizes[27][10] == (30, 800)
    (note,) = MInference().notes(28, 28)
    assert "Qwen/Qwen2.5-7B-Instruct, searched on text" in note


def test_another_shape_has_no_published_patterns_and_is_told_so(tiny_folder):
    (note,) = MInference().notes(36, 16)
    assert "28 layers of 28 heads, not 36 of 16: every head keeps 1000 columns and 6096" in note
    notes = videonsa.load(tiny_folder, method="minference", device="cpu").notes
    assert [one for one in notes if "not 2 of 4" in one]


def test_own_patterns_are_read_from_a_file_and_taken_by_layer_and_head(model, asked, tmp_path):
    path = tmp_path / "own.json"
    sizes = (((30, 50),) * 4, ((30, 60), (31, 50), (300, 1), (30, 50)))
    stated = HeadPatterns(model="tiny", searched_on="a clip", source="a test", sizes=sizes)
    path.write_text(stated.to_json())
    method = parse_method(f"minference:patterns={path}")
    assert HeadPatterns.read(path) == stated
    recorder, alike = Pairs(), Pairs()
    with torch.inference_mode():
        model(**asked, method=method, recorder=recorder)
        model(**asked, method=MINFERENCE, recorder=alike)
    assert recorder.pairs[0] == alike.pairs[0]
    assert recorder.pairs[1] > alike.pairs[1]
    with pytest.raises(UsageError, match="2 layers of 4 heads, the model has 28 of 28"):
        method.notes(28, 28)


@pytest.mark.parametrize(
    "change",
    [{"layers": ["aa", "a"]}, {"layers": ["az"]}, {"sizes": {"a": [0, 3]}}, {"format": "1"}],
)
def test_a_file_without_patterns_is_refused(tmp_path, change):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(json.loads(PUBLISHED_FILE.read_text()) | change))
    with pytest.raises(
        UsageError, match=r"^.*bad\.json holds no head patterns .*search minference"
    ):
        MInference(patterns=str(path))


@pytest.mark.parametrize(
    "text",
    [
        "tri_shape:n_local=0",
        "tri_shape:n_init=-1",
        "minference:slash=0",
        "flexprefill:gamma=0",
        "flexprefill:gamma=1.1",
        "flexprefill:tau=-0.1",
        "flexprefill:min_budget=0",
        "flexprefill:max_budget=0",
        "flexprefill:max_budget=512",
        "flexprefill:block_size=32",
        "xattention:threshold=0",
        "xattention:stride=24",
        "xattention:block_size=64,stride=128",
        "xattention:dense_layers=-1",
    ],
)
def test_settings_outside_their_domain_are_refused(text):
    with pytest.raises(UsageError, match=": want "):
        parse_method(text)


def test_a_prompt_of_one_token_attends_to_itself(model):
    ids = torch.tensor([[40]])
    with torch.inference_mode():
        dense = model(ids, method=Dense()).logits
        assert torch.equal(model(ids, method=TRI_SHAPE).logits, dense)
