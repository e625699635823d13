"""What all findings share: what is asked, results as JSON, figures, the page and the command."""

import json
from dataclasses import replace

import pytest

from videonsa.analysis.asked import AskedFile, AskedSuite
from videonsa.analysis.finding import NoOptions, findings_in
from videonsa.analysis.look import DARK, LIGHT, picture
from videonsa.analysis.reading import read
from videonsa.analysis.registry import FINDINGS, finding_from, options_from
from videonsa.analysis.report_page import report_page
from videonsa.analysis.transfer import Transfer, TransferOptions
from videonsa.cli.main import EXIT_USER, main
from videonsa.errors import UsageError
from videonsa.inference.engine import load
from videonsa.models.methods.dense import Dense
from videonsa.models.methods.nsa import NSA, StaticGates


@pytest.fixture(scope="module")
def qa():
    return load("embedded", device="cpu")


CLIPS = AskedSuite(suite="clips", videos_per_task=2, tokens=128)


@pytest.fixture(scope="module")
def transfer(qa):
    said = []
    found = Transfer.measure(qa, CLIPS, TransferOptions(), progress=said.append)
    assert len(said) == 2
    return found


def test_no_two_videos_share_a_seed_and_each_shows_its_own_kind():
    asked = AskedSuite(suite="2", kinds=("needle", "order"), videos_per_task=2, tokens=1024)
    videos = asked.videos()
    assert [video.task for video in videos] == ["needle", "order", "needle", "order"]
    assert len({video.number for video in videos}) == 4
    for video in videos:
        assert {question.kind for question in video.questions} == {video.task}


def test_a_needle_says_when_its_evidence_is_seen():
    (clip, _) = CLIPS.videos()
    (span,) = next(one.evidence for one in clip.questions if one.kind == "flash")
    assert 0 <= span[0] < span[1] <= 8


@pytest.mark.parametrize(
    "changes",
    [
        {"suite": "3"},
        {"kinds": ("dance",)},
        {"tokens": 3},
        {"videos_per_task": 0},
        {"suite": "clips", "tokens": 16},
    ],
)
def test_what_cannot_be_asked_is_refused(changes):
    with pytest.raises(UsageError):
        AskedSuite(**changes)


def test_a_video_is_read_once_and_questions_do_not_see_each_other(qa):
    video = CLIPS.videos()[0]
    vision = video.encode(qa, None)
    together = read(qa, vision, video.questions)
    alone = [read(qa, vision, [one]).replies[0] for one in video.questions]
    assert list(together.replies) == alone
    assert together.vision_tokens == 128
    assert 0 < together.attention < 1
    assert read(qa, vision, video.questions, method=Dense()).attention == pytest.approx(1)


def test_a_question_without_options_gets_a_written_answer(qa):
    video = CLIPS.videos()[0]
    free = next(one for one in video.questions if one.kind == "colour")
    reply = read(qa, video.encode(qa, None), [free._replace(options=(), answer=None)])
    assert reply.replies == (free.answer,)
    assert reply.right([free._replace(options=(), answer=None)]) == []


def test_json_gives_the_same_finding_again(transfer):
    content = json.loads(json.dumps(transfer.to_json()))
    assert finding_from(content) == transfer
    assert content["facts"]["asked"]["num_frames"] == 16
    with pytest.raises(UsageError, match="measure it again"):
        finding_from(content | {"version": 0})
    with pytest.raises(UsageError, match="measure it again"):
        finding_from({name: value for name, value in content.items() if name != "trained"})


def test_weights_with_gates_run_dense_and_are_compared_with_themselves(transfer):
    own, dense = transfer.compared.arms
    assert own.agreement.value == 1
    assert own.difference.value == 0
    assert dense.attention == pytest.approx(1)
    assert own.attention < 1
    assert transfer.compared.guessing.chance < 0.4


def test_weights_that_were_trained_densely_run_sparse_with_gates_at_one_half(request):
    dense = load(request.config.rootpath / "checkpoints/study-dense", device="cpu")
    asked = AskedSuite(suite="1", kinds=("needle",), videos_per_task=1, tokens=256)
    for method, is_dense in (
        ("nsa:block_size=16,num_selected_blocks=2,window_size=16", False),
        # Two branches that see everything, each by one half, are dense attention itself.
        ("nsa:branches=selected/window,num_selected_blocks=64,window_size=1024", True),
    ):
        found = Transfer.measure(dense, asked, TransferOptions(sparse=method), progress=print)
        trained, sparse = found.compared.arms
        assert (trained.label, sparse.label) == ("dense, as trained", "nsa, gates at one half")
        assert trained.attention == pytest.approx(1)
        assert (sparse.attention > 1) == is_dense
        if is_dense:
            assert sparse.agreement.value == 1


def test_static_gates_equal_learned_ones_that_are_constant(qa):
    config = qa.model.config.text_config
    half = StaticGates.at_half(config.num_hidden_layers, config.num_attention_heads)
    assert half.values.shape == (5, 6, 3)
    video = CLIPS.videos()[0]
    vision = video.encode(qa, None)
    method = replace(qa.model.method, static_gates=half)
    open_at_half = read(qa, vision, video.questions, method=method)
    closed = StaticGates(half.values * 0)
    without = NSA(qa.model.method.spec.with_options(branches=()))
    assert method.parameters()["gates"] == "static"
    assert open_at_half.attention == pytest.approx(read(qa, vision, video.questions).attention)
    assert (
        read(qa, vision, video.questions, method=replace(method, static_gates=closed)).replies
        == read(qa, vision, video.questions, method=without).replies
    )


def test_figures_are_light_and_dark_and_say_the_same_twice(transfer):
    light, dark = (picture(transfer, look, kind="svg") for look in (LIGHT, DARK))
    assert LIGHT.ground.encode() in light
    assert DARK.ground.encode() in dark
    assert picture(transfer, LIGHT, kind="svg") == light


def test_the_page_needs_no_network_and_escapes_what_it_is_told(transfer):
    facts = replace(transfer.facts, model="<b>mine</b>", notes=("a & b",))
    page = report_page([replace(transfer, facts=facts)])
    assert "&lt;b&gt;mine&lt;/b&gt;" in page
    assert "<b>mine" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("data:image/svg+xml") == 2


def test_the_page_of_a_demonstration_says_so_first(transfer):
    lead = "The embedded model is a demonstration"
    page = report_page([transfer])
    assert page.index("<h1>") < page.index(lead) < page.index("<nav")
    trained = replace(transfer, facts=replace(transfer.facts, demonstration=False))
    assert lead not in report_page([trained])


def test_options_are_read_by_their_types():
    assert options_from(TransferOptions, ["sparse=nsa:window_size=8"]).sparse == "nsa:window_size=8"
    for kind, pair in (
        (TransferOptions, "dense=1"),
        (TransferOptions, "sparse"),
        (NoOptions, "a=1"),
    ):
        with pytest.raises(UsageError, match="--set"):
            options_from(kind, [pair])


def test_every_entry_names_its_class():
    for name, entry in FINDINGS.items():
        assert entry.load().name == name


def test_the_committed_findings_are_read_and_are_of_a_demonstration(request):
    folder = request.config.rootpath / "benchmarks/results/cpu/findings"
    found = [finding_from(content) for content in findings_in(folder)]
    assert {one.name for one in found} == {*FINDINGS}
    assert all(one.facts.demonstration and one.sentences() for one in found)


def test_the_command_writes_json_figure_and_page(tmp_path, capsys):
    out = tmp_path / "found"
    options = ["--videos", "1", "--length", "128", "--kinds", "flash", "--out", str(out)]
    assert main(["analyze", "transfer", *options]) == 0
    assert "beside the weights as trained" in capsys.readouterr().out
    assert main(["analyze", "report", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "report.html",
        "transfer.json",
        "transfer.png",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["transfer", "clip.mp4"],
        ["transfer", "clip.mp4", "What?", "--suite", "2"],
        ["transfer", "--fps", "2"],
        ["transfer", "--set", "a=1"],
        ["report", "nowhere"],
    ],
)
def test_what_does_not_go_together_is_one_line(arguments, capsys):
    assert main(["analyze", *arguments]) == EXIT_USER
    assert capsys.readouterr().err.count("\n") == 1


def test_a_video_of_ones_own_has_one_question():
    (video,) = AskedFile(video="clip.mp4", question="What flashed?").videos()
    assert video.questions[0].answer is None
