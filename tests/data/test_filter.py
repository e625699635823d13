"""The rules by numbers worked out by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import videonsa
from videonsa.data.filter import FilterOptions, Found, judge, media_facts
from videonsa.data.manifest import MediaFacts
from videonsa.data.probe_journal import FileState, ProbeFailure
from videonsa.data.reasons import DropError, Reason
from videonsa.data.records import ImageRef, Record, Text, Turn, VideoRef
from videonsa.data.scripts import script_info, script_of
from videonsa.data.suite_source import SuiteSource
from videonsa.errors import UsageError
from videonsa.video.sampling import VideoInfo

TOKENIZER = AutoTokenizer.from_pretrained(Path(videonsa.__file__).parent / "assets/embedded")
VIDEO, OTHER, IMAGE = VideoRef(path="/v.mp4"), VideoRef(path="/w.mp4"), ImageRef(path="/i.png")
STATE = FileState("/v.mp4", 1000, 5)


def info(seconds: float, *, fps: float = 30.0, size: tuple[int, int] = (720, 1280)) -> VideoInfo:
    return VideoInfo(
        path="/v.mp4",
        duration=seconds,
        num_frames=round(seconds * fps),
        fps=fps,
        height=size[0],
        width=size[1],
    )


def record_of(*media: object, answers: tuple[str, ...] = ("red",)) -> Record:
    turns = []
    for index, answer in enumerate(answers):
        shown = media if index == 0 else ()
        turns += [
            Turn(role="user", parts=(*shown, Text("star"))),
            Turn(role="assistant", parts=(Text(answer),)),
        ]
    return Record(id="r", source="s", turns=tuple(turns))


def keep(record: Record, *probed: Any, **options: Any) -> Any:
    rule = FilterOptions(**options)
    facts = tuple(
        media_facts(Found(media, STATE, found), rule.uncapped)
        for media, found in zip(record.media, probed, strict=True)
    )
    return judge(record, facts, options=rule, tokenizer=TOKENIZER)


def reason_of(record: Record, *probed: Any, **options: Any) -> Reason:
    with pytest.raises(DropError) as caught:
        keep(record, *probed, **options)
    return caught.value.reason


@pytest.mark.parametrize(
    ("seconds", "fps", "num_frames"),
    [
        (87.5, 30.0, 350),  # 87.5 s * 4
        (88.4, 30.0, 352),  # 353.6, whole pairs
        (137.9, 30.0, 550),  # 551.6
        (180.0, 2.0, 360),  # there are no more frames
    ],
)
def test_videos_of_350_to_550_frames_are_kept(seconds: float, fps: float, num_frames: int) -> None:
    row = keep(record_of(VIDEO), info(seconds, fps=fps))
    assert row.num_frames == row.media[0].num_frames == num_frames


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [
        (87.4, Reason.FEW_FRAMES),  # 349.6: 348
        (0.0, Reason.FEW_FRAMES),
        (138.0, Reason.MANY_FRAMES),  # 552
        (7200.0, Reason.MANY_FRAMES),
    ],
)
def test_shorter_and_longer_videos_are_not(seconds: float, reason: Reason) -> None:
    assert reason_of(record_of(VIDEO), info(seconds)) == reason


def test_frames_and_tokens_of_a_kept_video() -> None:
    row = keep(record_of(VIDEO), info(100.0))
    (facts,) = row.media
    # 16:9 within 50,176 pixels: 168 x 280, 6 x 10 merged tokens for each of 200 pairs.
    assert (facts.num_frames, facts.height, facts.width) == (400, 168, 280)
    assert facts.num_tokens == row.video_tokens == 12_000
    assert (facts.sampled_fps, facts.duration, facts.source_frames) == (4.0, 100.0, 3000)
    assert (facts.file_size, facts.mtime_ns) == (1000, 5)
    assert row.tokens == row.video_tokens + row.text_tokens
    assert row.text_tokens == len(
        TOKENIZER.encode(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            "<|vision_start|><|vision_end|>star<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
        )
    )


def test_every_threshold_is_an_option() -> None:
    small = {"min_frames": 0, "max_frames": 20, "fps": 1.0, "max_pixels": 28 * 28}
    row = keep(record_of(VIDEO), info(10.0), **small)
    assert (row.num_frames, row.video_tokens) == (10, 5)
    assert reason_of(record_of(VIDEO), info(30.0), **small) == Reason.MANY_FRAMES
    enlarged = keep(
        record_of(VIDEO), info(100.0, size=(28, 28)), min_pixels=56 * 56, max_pixels=56 * 56
    )
    assert (enlarged.media[0].height, enlarged.media[0].width) == (56, 56)


def test_training_samples_what_the_filter_counted() -> None:
    options = FilterOptions()
    assert options.sampling.max_frames == 550
    assert (options.sampling.fps, options.sampling.max_pixels) == (4.0, 50_176)


def test_frames_of_several_videos_count_together() -> None:
    record = record_of(VIDEO, OTHER, IMAGE)
    row = keep(record, info(50.0), info(50.0), info(0.0))
    assert (row.num_frames, row.duration, row.num_media) == (400, 100.0, 3)
    assert row.image_tokens == row.media[2].num_tokens == 60
    assert reason_of(record, info(50.0), info(100.0), info(0.0)) == Reason.MANY_FRAMES


def test_rate_of_a_video_wins() -> None:
    own = VideoRef(path="/v.mp4", fps=2.0)
    assert keep(record_of(own), info(200.0)).num_frames == 400
    assert reason_of(record_of(VIDEO), info(200.0)) == Reason.MANY_FRAMES


def test_what_a_video_says_about_its_sampling_wins() -> None:
    def facts(video: VideoRef | ImageRef, seconds: float = 100) -> Any:
        probed = info(seconds, size=(1120, 1120))
        return media_facts(Found(video, STATE, probed), FilterOptions().uncapped)

    assert facts(VideoRef(path="/v.mp4", num_frames=7)).num_frames == 7
    assert facts(VideoRef(path="/v.mp4", max_frames=12)).num_frames == 12
    assert facts(VideoRef(path="/v.mp4", fps=0.1, min_frames=20)).num_frames == 20
    assert facts(VideoRef(path="/v.mp4", max_pixels=28 * 28)).height == 28
    assert facts(VideoRef(path="/v.mp4", max_pixels=400 * 784)).height == 560
    small = VideoRef(path="/v.mp4", num_frames=8, total_pixels=4 * 16 * 784)
    assert (facts(small).height, facts(small).num_tokens) == (112, 4 * 16)
    assert facts(VideoRef(path="/v.mp4", min_pixels=56 * 56)).num_frames == 400
    assert facts(ImageRef(path="/v.mp4", max_pixels=784), seconds=0).width == 28
    wrong = (
        VideoRef(path="/v.mp4", min_pixels=10**6),
        VideoRef(path="/v.mp4", max_pixels=1),
        VideoRef(path="/v.mp4", total_pixels=1),
    )
    for video in wrong:
        with pytest.raises(DropError, match=r"bad_shape: /v\.mp4: m"):
            facts(video)


def test_a_row_whose_learnt_turns_are_cut_is_dropped() -> None:
    record = record_of(VIDEO, answers=("red", "blue"))
    silent = replace(record.turns[1], learned=False)
    record = replace(record, turns=(record.turns[0], silent, *record.turns[2:]))
    kept = keep(record, info(100))
    assert reason_of(record, info(100), max_tokens=kept.tokens - 1) == Reason.NO_LOSS


def test_numbers_have_the_types_that_a_manifest_gives_back() -> None:
    still = replace(info(0, size=(56, 56)), fps=0, num_frames=1)
    for row in (
        keep(record_of(IMAGE), still, min_frames=0),
        keep(record_of(VIDEO), replace(info(100), duration=100, fps=30)),
    ):
        floats = [row.duration, *(number for x in row.media for number in _floats(x))]
        assert {type(number) for number in floats} == {float}


def _floats(facts: MediaFacts) -> tuple[float, float]:
    return facts.duration, facts.sampled_fps


def test_longer_records_are_cut_at_turns_or_dropped() -> None:
    record = record_of(VIDEO, answers=("red", "star " * 500))
    row = keep(record, info(100.0), max_tokens=12_300)
    assert (row.num_turns, len(record.turns)) == (2, 4)
    assert 12_000 < row.tokens <= 12_300
    assert reason_of(record, info(100.0), max_tokens=12_300, long="drop") == Reason.TOO_LONG
    assert reason_of(record, info(100.0), max_tokens=12_000) == Reason.TOO_LONG
    assert keep(record, info(100.0), max_tokens=None).num_turns == 4


def test_cutting_may_leave_too_few_frames() -> None:
    first = record_of(VIDEO, answers=("red",)).turns
    second = record_of(OTHER, answers=("star " * 3000,)).turns
    record = Record(id="r", source="s", turns=(*first, *second))
    assert keep(record, info(50.0), info(50.0)).num_frames == 400
    cut = reason_of(record, info(50.0), info(50.0), max_tokens=7000)
    assert cut == Reason.FEW_FRAMES


def test_what_probing_says_is_why() -> None:
    broken = ProbeFailure(Reason.BROKEN, "no picture")
    assert reason_of(record_of(VIDEO), broken) == Reason.BROKEN
    assert reason_of(record_of(VIDEO), ProbeFailure(Reason.TIMEOUT, "")) == Reason.TIMEOUT
    assert reason_of(record_of(IMAGE), info(10.0)) == Reason.BROKEN
    assert reason_of(record_of(VIDEO), info(100.0, size=(2, 1000))) == Reason.BAD_SHAPE


def test_rendered_videos_are_taken_as_they_are() -> None:
    (entry,) = SuiteSource(count=1, frames=400, size=224).entries()
    script = script_of(entry.found.videos[0].script)
    row = keep(entry.found, script_info(script), max_pixels=784)
    assert (row.num_frames, row.media[0].height, row.video_tokens) == (400, 224, 64 * 200)


@pytest.mark.parametrize(
    "options",
    [
        {"min_frames": 5, "max_frames": 4},
        {"min_frames": -1},
        {"max_tokens": 0},
        {"long": "keep"},
        {"fps": 0.0},
        {"max_pixels": 1},
        {"min_frames": 10**12, "max_frames": 10**12},
        {"max_frames": 2**31},
        {"max_pixels": 10**30},
        {"min_pixels": 2**31, "max_pixels": 2**31},
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="want"):
        FilterOptions(**options)
