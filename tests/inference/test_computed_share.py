"""Answers and plans tell the vision tokens left and the share of dense attention computed."""

import json

import pytest
import torch

import videonsa
from videonsa.cli.main import main
from videonsa.errors import UsageError
from videonsa.inference.session import Session
from videonsa.models.methods.pairs import causal_pairs
from videonsa.planning.computed import Computed, LayerTokens


@pytest.fixture(scope="module")
def dense(tiny_folder):
    return videonsa.load(tiny_folder, method="dense", device="cpu")


def test_dense_attention_computes_all_of_it_in_every_turn(dense, clip_path, tmp_path):
    session = dense.open(clip_path)
    stream = session.ask("What moves?", max_new_tokens=3, stream=True)
    assert stream.usage.computed is None
    answers = [stream.finish(), session.ask("Where?", max_new_tokens=2)]
    answers += session.ask_each(["Why?", "When, then?"], max_new_tokens=2)
    session.save(tmp_path / "kept")
    answers.append(Session.load(tmp_path / "kept", dense).ask("Who?", max_new_tokens=2))
    answers.append(session.ask("How?", fresh=True, max_new_tokens=2))
    for answer in answers:
        tokens = answer.usage.video_tokens
        assert answer.usage.computed.left == ((0, tokens),)
        assert answer.usage.computed.attention == pytest.approx(1)
    told = json.loads(json.dumps(answers[0].to_dict()))["usage"]["computed"]
    assert told["left"] == [{"first_layer": 0, "tokens": tokens}]


def test_tokens_that_leave_are_told_by_layer_as_they_were_planned(tiny_folder, clip_path):
    method = "fastv:layer=1,ratio=0.25"
    usage = videonsa.load(tiny_folder, method=method, device="cpu").ask(clip_path, "?").usage
    tokens = usage.video_tokens
    left, kept = usage.prompt_tokens - tokens + tokens // 4, tokens // 4
    assert usage.computed.left == ((0, tokens), (1, kept))
    whole = causal_pairs(usage.prompt_tokens)
    assert usage.computed.attention == pytest.approx((whole + causal_pairs(left)) / (2 * whole))
    text_tokens = usage.prompt_tokens - tokens
    plan = videonsa.plan_video(clip_path, tiny_folder, method=method, text_tokens=text_tokens)
    assert plan.computed == usage.computed
    assert usage.computed.describe().startswith(
        f"{tokens} video tokens from the tower -> {tokens} before layer 0 -> {kept} after layer 0; "
    )


def test_nsa_computes_less_and_a_plan_leaves_open_what_the_content_decides(tiny_folder, clip_path):
    method = "nsa:block_size=4,num_selected_blocks=2,window_size=4"
    usage = videonsa.load(tiny_folder, method=method, device="cpu").ask(clip_path, "?").usage
    plan = videonsa.plan_video(clip_path, tiny_folder, method=method)
    assert 0.1 < usage.computed.attention < 0.9
    assert plan.computed.attention < 1
    assert plan.attention == usage.attention == "nsa"
    unknown = videonsa.plan_video(clip_path, tiny_folder, method="xattention").computed
    assert unknown.attention is None
    assert unknown.describe().endswith("share of dense attention not known")


def test_once_frames_were_forgotten_the_share_is_not_known(dense, clip_path):
    session = dense.open(clip_path)
    session.ask("?", max_new_tokens=1)
    session.forget_conversation()
    context = session._transcript.context
    begin = int(context.cache.tokens.vision_mask[0].nonzero()[0])
    context.forget(begin, begin + context.cache.tokens.frame_sizes[0][0])
    assert context.cache.computed is None


def test_layers_before_which_none_left_are_not_named():
    left = [LayerTokens(0, 8), LayerTokens(2, 8), LayerTokens(3, 4)]
    found = Computed.of(tower_tokens=8, left=left, pairs=1.0, dense_pairs=4)
    assert found.left == ((0, 8), (3, 4))
    assert found.attention == 0.25


@pytest.mark.parametrize("command", ["ask", "plan", "chat"])
def test_commands_tell_it_in_one_line(command, tiny_folder, clip_path, capsys, monkeypatch):
    arguments = [command, str(clip_path), *(["?"] if command == "ask" else [])]
    arguments += ["--model", str(tiny_folder), "--method", "fastv:layer=1"]
    if command == "chat":
        lines = iter(["What?"])
        monkeypatch.setattr("videonsa.cli.lines.Lines.__iter__", lambda _: lines)
    assert main([*arguments, "--max-new-tokens", "1"]) == 0
    captured = capsys.readouterr()
    told = [x for x in (captured.out + captured.err).splitlines() if x.startswith("computed ")]
    assert len(told) == 1
    assert " before layer 0 -> " in told[0]
    assert " % of dense attention to the whole prompt" in told[0]


def test_a_session_is_for_the_method_and_the_options_that_it_was_saved_with(
    tiny_folder, clip_path, tmp_path
):
    first, other = (
        videonsa.load(tiny_folder, method=f"fastv:layer=1,ratio={ratio}", device="cpu")
        for ratio in (0.5, 0.25)
    )
    first.open(clip_path).save(tmp_path / "kept")
    with pytest.raises(UsageError, match=r"was saved with spec\.ratio 0\.5, now 0\.25"):
        Session.load(tmp_path / "kept", other)
    with torch.inference_mode():
        assert Session.load(tmp_path / "kept", first).ask("What?", max_new_tokens=1).text
