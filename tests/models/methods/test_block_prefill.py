"""FlexPrefill and XAttention in the embedded model: answers, and what was computed for them."""

from dataclasses import asdict

import pytest

import videonsa
from videonsa.models.costs import AttentionCall
from videonsa.models.methods import Dense, parse_method
from videonsa.models.methods.flexprefill import FlexPrefill
from videonsa.models.methods.xattention import XAttention
from videonsa.models.recorder.protocol import Recorder
from videonsa.rendered.clips import make_scene, render_scene, scene_seed


@pytest.fixture(scope="module")
def clip():
    """24 seconds: 384 video tokens."""
    scene = make_scene(scene_seed("test", 6), duration=24.0)
    return videonsa.FrameList(render_scene(scene, [i / 2 for i in range(48)]), fps=2.0)


class Shares(Recorder):
    """Of the causal pairs of a prompt, layer by layer, those that were computed."""

    def __init__(self):
        self.of_layer = []

    def record(self, layer, q, k, attended):
        num_tokens, num_heads = q.shape[1:3]
        dense = num_heads * num_tokens * (num_tokens + 1) // 2
        if num_tokens > 1:
            self.of_layer.append(1.0 if attended.pairs is None else int(attended.pairs) / dense)


def asked(clip, text):
    """The answer, and the share of each layer."""
    shares = Shares()
    qa = videonsa.load("embedded", method=text, device="cpu")
    return qa.ask(clip, "What flashed?", recorder=shares), shares.of_layer


@pytest.mark.parametrize(
    "text",
    [
        "flexprefill:gamma=0.5,min_budget=1,block_size=64",
        "xattention:threshold=0.7,block_size=64,dense_layers=1",
    ],
)
def test_a_video_is_answered_with_part_of_the_attention(clip, text):
    answer, shares = asked(clip, text)
    assert answer.text == "red circle"
    assert answer.usage.attention == text.partition(":")[0]
    assert answer.usage.spec == parse_method(text).parameters()
    sparse = shares[answer.usage.spec.get("dense_layers", 0) :]
    assert all(0.2 < share < 0.95 for share in sparse)
    assert shares[: -len(sparse)] == [1.0] * (len(shares) - len(sparse))


def test_published_settings_are_the_defaults():
    assert asdict(FlexPrefill()) == {
        "gamma": 0.9,
        "tau": 0.1,
        "min_budget": 1024,
        "max_budget": None,
        "block_size": 128,
    }
    assert asdict(XAttention()) == {
        "stride": 16,
        "threshold": 0.9,
        "dense_layers": 0,
        "block_size": 128,
    }


def test_layers_that_are_all_dense_are_told():
    assert XAttention(dense_layers=3).notes(28, 28) == ()
    (note,) = XAttention(dense_layers=28).notes(28, 28)
    assert note == "xattention: dense_layers=28 are all 28 layers, so attention is dense"


@pytest.mark.parametrize(
    ("text", "num_tokens", "is_known"),
    [
        ("flexprefill", 1024, True),
        ("flexprefill", 1025, False),
        ("flexprefill:gamma=1", 9000, True),
        ("flexprefill:gamma=1,max_budget=2048", 9000, False),
        ("xattention", 1024, False),
        ("xattention:threshold=1", 9000, True),
        ("minference", 701, False),
        ("minference", 700, True),
        ("minference:patterns=none", 6096, True),
        ("minference:patterns=none", 6097, False),
    ],
)
def test_pairs_are_foreseen_where_a_prompt_is_sure_to_be_dense(text, num_tokens, is_known):
    call = AttentionCall(
        prompt_tokens=num_tokens,
        chunk_tokens=num_tokens,
        video_tokens=1000,
        num_frames=10,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        value_bytes=2,
    )
    wanted = Dense().prompt_pairs(call) if is_known else None
    assert parse_method(text).prompt_pairs(call) == wanted
