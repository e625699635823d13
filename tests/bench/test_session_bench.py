"""What `bench session` measures, stage by stage, and the speed of a disk."""

import torch

from videonsa.bench.disk_speed import disk_speed, forget_pages
from videonsa.bench.session import SessionRequest, _Timer, bench_session, made_up_clip
from videonsa.video.sampling import SamplingSpec

STAGES = [
    "open",
    "a question about the video",
    "a follow-up question",
    "extend by a pair of frames",
    "a question after that",
    "save, exact",
    "load, exact",
    "save, int8",
    "load, int8",
    "disk, write a plain file",
    "disk, read a plain file",
]


def request(folder, **options):
    return SessionRequest(
        model="tiny",
        frame=(56, 56),
        new_tokens=3,
        repeats=2,
        folder=folder,
        device=torch.device("cpu"),
        **options,
    )


def test_a_file_and_made_up_frames_go_through_all_that_a_session_does(tmp_path, clip_path):
    results = bench_session(
        request(tmp_path, video=clip_path, tokens=(16,)), progress=lambda _: None
    )
    counts = [sum(len(video["stages"]) for video in result["videos"]) for result in results]
    assert counts == list(range(1, 2 * len(STAGES) + 1)), "a result is given after every stage"
    result = list(bench_session(request(tmp_path, tokens=(16,)), progress=lambda _: None))[-1]
    (video,) = result["videos"]
    assert video["video"] == "16 tokens of made-up frames"
    assert video["tokens"] > 16
    assert [stage["name"] for stage in video["stages"]] == STAGES
    by_name = {stage["name"]: stage for stage in video["stages"]}
    assert [stage["error"] for stage in video["stages"]] == [None] * len(STAGES)
    asked = by_name["a question about the video"]
    assert 0 < asked["first_token_ms"] <= asked["ms"]
    assert len(asked["times_ms"]) == 2
    assert by_name["save, exact"]["gb"] > by_name["save, int8"]["gb"] > 0
    assert list(tmp_path.iterdir()) == [], "what was saved is removed"


def test_a_stage_that_fails_has_its_line_and_no_number(tmp_path):
    def broken():
        raise RuntimeError("the disk is full")

    stage = _Timer(request(tmp_path)).stage("save", broken)
    assert stage["error"] == "RuntimeError: the disk is full"
    assert stage["ms"] is None


def test_made_up_frames_have_the_tokens_asked_for():
    clip = made_up_clip(50, SamplingSpec(fps=2.0, max_pixels=56 * 56, max_frames=1000))
    assert clip.frames.shape == (2 * 13, 3, 56, 56)
    assert clip.plan.num_tokens == 52


def test_a_plain_file_is_written_and_read_whole(tmp_path):
    found = disk_speed(tmp_path, 3 * 10**7)
    assert list(found) == ["write", "read"]
    assert all(one.num_bytes == 2**24 and one.seconds > 0 for one in found.values())
    assert list(tmp_path.iterdir()) == []


def test_files_stay_what_they_are_when_their_pages_are_forgotten(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/one").write_bytes(b"1" * 5000)
    forget_pages(tmp_path)
    assert (tmp_path / "inside/one").read_bytes() == b"1" * 5000
