"""The same frames, bit by bit, whatever the file and the number of workers."""

import ctypes
import os
import threading

import av
import numpy as np
import pytest
import torch
import video_files as vf

from videonsa.errors import UsageError, VideoError
from videonsa.machine import usable_cores
from videonsa.video import decode, reader
from videonsa.video.decode import pick_frames, read_video, stream_video
from videonsa.video.reader import VideoSource
from videonsa.video.sampling import SamplingSpec

WORKERS = [1, 2, 3, 5]
MPEG2 = ("mpeg2video", "yuv420p", {"bf": "2"})
FILES = {
    "h264 with B-frames": ("mp4", None, 12),
    "h264 in mkv": ("mkv", None, 30),
    "h264 in flv, which begins late": ("flv", ("libx264", "yuv420p", {"bf": "2"}), 12),
    "h264 with open groups": (
        "mkv",
        ("libx264", "yuv420p", {"bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
        12,
    ),
    "h265 with open groups": (
        "mp4",
        ("libx265", "yuv420p", {"x265-params": "log-level=none"}),
        20,
    ),
    "vp9": ("webm", None, 12),
    "mpeg4 with B-frames in avi": ("avi", ("mpeg4", "yuv420p", {"bf": "2"}), 12),
    "wmv, whose seeks land far off": ("wmv", ("wmv2", "yuv420p", {}), 12),
    "transport stream, no index": ("ts", None, 12),
    "program stream, no index": ("mpg", MPEG2, 12),
    "keyframes only": ("avi", ("mjpeg", "yuvj420p", {}), 1),
    "one group": ("mp4", None, 1000),
}
NUM_FRAMES = 240
M_PERTURB = -6
"""Of glibc's mallopt: what it gives out is filled, not as it was left."""


def noisy(count):
    """Numbered pictures under grain, so that no two frames are alike."""
    rng = np.random.default_rng(0)
    return [
        np.clip(
            vf.picture(number) + rng.integers(-20, 21, (vf.HEIGHT, vf.WIDTH, 3)), 0, 255
        ).astype(np.uint8)
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def pictures():
    return noisy(NUM_FRAMES)


@pytest.fixture(params=FILES, scope="module")
def path(request, tmp_path_factory, pictures):
    suffix, codec, gop = FILES[request.param]
    path = tmp_path_factory.mktemp("files") / f"clip.{suffix}"
    return vf.write_video(path, num_frames=NUM_FRAMES, gop=gop, codec=codec, pictures=pictures)


def decoded_in_one_go(path):
    """Seconds and pictures, by a plain loop over the whole file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frames = [
            (frame.pts, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)
        ]
        begin = stream.start_time if stream.start_time is not None else frames[0][0]
        return [(float((pts - begin) * stream.time_base), rgb) for pts, rgb in frames]


def assert_same_clips(clips):
    first = clips[0]
    for clip in clips[1:]:
        assert torch.equal(clip.frames, first.frames)
        assert clip.times == first.times
        assert clip.plan == first.plan
        assert clip.warnings == first.warnings


def num_workers():
    return sum(thread.name.startswith("video worker") for thread in threading.enumerate())


def read_with_each(path, spec):
    clips = [read_video(path, sampling=spec, workers=workers) for workers in WORKERS]
    assert_same_clips(clips)
    return clips[0]


@pytest.mark.parametrize("count", [1, 7, 200])
def test_any_number_of_workers_gives_what_a_plain_loop_gives(path, count):
    frames = decoded_in_one_go(path)
    times = np.sort(np.random.default_rng(count).uniform(0, frames[-1][0], count)).tolist()
    clip = read_with_each(path, SamplingSpec(timestamps=times, min_pixels=1))
    begins = np.array([time for time, _ in frames])
    shown = [frames[np.flatnonzero(begins <= time + 1e-3)[-1]][1] for time in times]
    assert torch.equal(
        clip.frames, torch.from_numpy(np.stack([decode._resized(rgb, clip.plan) for rgb in shown]))
    )
    assert clip.warnings == ()
    assert clip.notes == ()


def test_variable_frame_rates_and_late_beginnings_give_the_same_frames(tmp_path):
    rng = np.random.default_rng(1)
    times_ms = (700 + np.cumsum(rng.integers(5, 400, NUM_FRAMES))).tolist()
    path = vf.write_video(
        tmp_path / "clip.mkv", num_frames=NUM_FRAMES, times_ms=times_ms, gop=12,
        codec=("libx264", "yuv420p", {"bf": "0"}),
    )  # fmt: skip
    begins = np.array([time for time, _ in decoded_in_one_go(path)])
    times = np.sort(rng.uniform(begins[0], begins[-1], 60)).tolist()
    clip = read_with_each(path, SamplingSpec(timestamps=times))
    expected = [int(np.flatnonzero(begins <= time + 1e-3)[-1]) for time in times]
    assert [number % 1024 for number in expected] == vf.numbers_of(clip.frames)


@pytest.fixture
def memory_filled_alike():
    """Where a reference is lost, FFmpeg shows memory that it never wrote: here always the same."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        pytest.skip("wants glibc, which can fill memory")
    libc.mallopt(M_PERTURB, 1)
    yield
    libc.mallopt(M_PERTURB, 0)


@pytest.mark.usefixtures("memory_filled_alike")
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "avi", "ts"])
@pytest.mark.parametrize("damage", [(0.4, 0.6), (0.5, 0.503)])
@pytest.mark.parametrize("fps", [2.0, 30.0])
def test_damaged_files_give_the_same_frames_and_warnings(tmp_path, pictures, suffix, damage, fps):
    path = vf.write_video(
        tmp_path / f"clip.{suffix}", num_frames=NUM_FRAMES, gop=12, pictures=pictures
    )
    vf.overwrite(path, *damage)
    read_with_each(path, SamplingSpec(fps=fps))


@pytest.mark.parametrize("is_damaged", [False, True])
def test_from_the_first_damaged_frame_on_a_file_in_one_go_has_one_thread(
    tmp_path, pictures, is_damaged
):
    path = vf.write_video(tmp_path / "clip.mp4", gop=1000, pictures=pictures)
    whole = [rgb for _, rgb in decoded_in_one_go(path)]
    if is_damaged:
        vf.overwrite(path, 0.5, 0.52)
    source = VideoSource(path)
    layout = source.layout([0.0, 1.9], keyframes=False)
    with source.reader(layout) as read:
        frames = [frame.rgb() for segment in layout.segments for frame in read(segment)]
        threads = read.__self__._opened()[1].codec_context.thread_count
    assert len(layout.segments) == 1
    assert (threads == 1) == (is_damaged or usable_cores() == 1)
    same = [np.array_equal(a, b) for a, b in zip(frames, whole, strict=False)]
    assert sum(same) > 10 and all(same) != is_damaged


def test_a_lost_keyframe_costs_no_frame_of_another_group(tmp_path, pictures):
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=NUM_FRAMES, pictures=pictures)
    with av.open(str(path)) as container:
        keys = [(p.pos, p.size) for p in container.demux(video=0) if p.size and p.is_keyframe]
    data = bytearray(path.read_bytes())
    begin, size = keys[8]
    data[begin + 4 : begin + size] = b"\xff" * (size - 4)
    path.write_bytes(data)
    clip = read_with_each(path, SamplingSpec(fps=30.0))
    whole = set(range(NUM_FRAMES)) - set(range(8 * 12 - 12, 9 * 12 + 12))
    shown = dict(zip((round(time * 30) for time in clip.times), clip.frames, strict=True))
    assert clip.warnings
    assert all(vf.number_of(shown[number]) == number for number in whole)


def test_sparse_sampling_decodes_only_the_groups_it_needs(path):
    source = VideoSource(path)
    end = source.info.duration
    targets = [0.0, 0.4 * end, 0.4 * end + 0.01, 0.98 * end - 0.05]
    layout = source.layout(targets, keyframes=False)
    with source.reader(layout) as read:
        counts = [len(list(read(segment))) for segment in layout.segments]
    group = (NUM_FRAMES - 1) if len(layout.cuts) == 1 else 31
    assert sum(counts) <= 4 * group
    assert len(layout.segments) == (1 if len(layout.cuts) == 1 else 3)


def test_segments_may_be_read_in_any_order_and_again(path):
    source = VideoSource(path)
    targets = [frame / 30 for frame in range(0, NUM_FRAMES - 4, 9)]
    layout = source.layout(targets, keyframes=False)

    def times(read, segment):
        wanted = layout.targets[segment.first : segment.last]
        return [pick.time for pick in pick_frames(read(segment), wanted)]

    with source.reader(layout) as read:
        forth = [times(read, segment) for segment in layout.segments]
        back = [times(read, segment) for segment in reversed(layout.segments)]
    assert forth == back[::-1]
    assert sum(map(len, forth)) == len(targets)


def test_files_that_cannot_be_cut_are_read_by_one_worker_and_say_so(tmp_path):
    h264 = ("libx264", "yuv420p", {"bf": "0", "x264-params": "intra-refresh=1:scenecut=0"})
    raw = vf.write_video(tmp_path / "clip.h264", num_frames=60, codec=h264)
    refreshed = vf.write_video(tmp_path / "clip.mp4", num_frames=NUM_FRAMES, codec=h264)
    broken = vf.write_video(tmp_path / "clip.ts", num_frames=200, gop=12)
    vf.overwrite(broken, 0.4, 0.6)
    for path, reason in {
        raw: "its pictures have no timestamps",
        refreshed: "its keyframes do not decode on their own",
        broken: "parts of it are damaged",
    }.items():
        notes = read_video(path, sampling=SamplingSpec(num_frames=20), workers=3).notes
        assert notes == (f"read by one worker, not 3: {reason}",)
        assert read_video(path, sampling=SamplingSpec(num_frames=20), workers=1).notes == ()
        read_with_each(path, SamplingSpec(num_frames=20))


def test_timestamps_that_jump_back_are_read_in_one_go(tmp_path):
    parts = [
        vf.write_video(tmp_path / f"{n}.mpg", num_frames=90, gop=12, codec=MPEG2) for n in range(2)
    ]
    path = tmp_path / "clip.mpg"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    clip = read_video(path, sampling=SamplingSpec(num_frames=6), workers=2)
    assert clip.notes == (
        "time goes back at 3.00 s: the second part follows the first",
        "read by one worker, not 2: its timestamps jump back",
    )
    read_with_each(path, SamplingSpec(num_frames=6))


def test_files_in_which_seeks_fail_are_read_by_one_worker_and_say_so(tmp_path, monkeypatch):
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=NUM_FRAMES)
    exact = read_video(path, sampling=SamplingSpec(fps=5.0), workers=1)
    monkeypatch.setattr(reader, "SEEK_LEADS", (-3,))  # they land too late
    clip = read_video(path, sampling=SamplingSpec(fps=5.0), workers=2)
    assert clip.notes == ("read by one worker, not 2: it cannot be sought in",)
    assert torch.equal(clip.frames, exact.frames)


def test_nearest_keyframes_are_taken_once_with_their_own_times(tmp_path):
    codec = ("libx264", "yuv420p", {"bf": "2", "x264-params": "scenecut=0"})
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=NUM_FRAMES, gop=30, codec=codec)
    spec = SamplingSpec(timestamps=[0.0, 0.4, 0.6, 3.1, 7.9], mode="keyframes")
    clip = read_with_each(path, spec)
    assert vf.numbers_of(clip.frames) == [0, 30, 90, 210]
    assert clip.times == clip.plan.times == (0.0, 1.0, 3.0, 7.0)
    assert clip.sampled_fps == pytest.approx(4 / 8)
    assert clip.notes == (
        "keyframes only: the nearest to 5 wanted times are 4, at most 0.90 s away",
    )
    assert clip.warnings == ()


def test_keyframes_are_pictures_of_the_file_and_nothing_else_is_decoded(path):
    source = VideoSource(path)
    layout = source.layout([0.0, 2.0, 4.0, 6.0], keyframes=True)
    with source.reader(layout) as read:
        frames = [list(read(segment)) for segment in layout.segments]
    assert [[frame.time for frame in group] for group in frames] == [[at] for at in layout.targets]
    pictures = dict(decoded_in_one_go(path))
    assert all(np.array_equal(group[0].rgb(), pictures[group[0].time]) for group in frames)


def test_where_keyframes_are_not_known_exact_frames_are_taken_and_said_so(tmp_path):
    h264 = ("libx264", "yuv420p", {"bf": "0"})
    path = vf.write_video(tmp_path / "clip.h264", num_frames=60, codec=h264)
    clip = read_video(path, sampling=SamplingSpec(num_frames=5, mode="keyframes"), workers=1)
    assert clip.notes == ("exact frames, not keyframes: its pictures have no timestamps",)
    exact = read_video(path, sampling=SamplingSpec(num_frames=5), workers=1)
    assert torch.equal(clip.frames, exact.frames)


def test_an_error_in_a_worker_is_the_error_of_one_worker(tmp_path, monkeypatch):
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=NUM_FRAMES)
    spec = SamplingSpec(num_frames=60)

    def fails(picture, plan):
        if vf.number_of(picture.transpose(2, 0, 1)) > 150:
            raise RuntimeError("no more")
        return resized(picture, plan)

    resized = decode._resized
    monkeypatch.setattr(decode, "_resized", fails)
    seen = []
    for workers in WORKERS:
        stream = stream_video(path, sampling=spec, workers=workers)
        targets = []
        with pytest.raises(RuntimeError, match="no more"):
            targets.extend(frame.target for frame in stream.frames)
        seen.append(targets)
        assert num_workers() == 0
    assert seen == [seen[0]] * len(WORKERS)
    assert len(seen[0]) == 38


def test_a_file_that_vanishes_is_one_clear_line(tmp_path):
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=NUM_FRAMES)
    for workers in WORKERS:
        stream = stream_video(path, workers=workers)
        gone = path.rename(tmp_path / "gone.mp4")
        with pytest.raises(VideoError, match=r"clip\.mp4: .*: want"):
            list(stream.frames)
        gone.rename(path)


@pytest.mark.parametrize("workers", WORKERS)
def test_closing_a_stream_early_leaves_no_thread(tmp_path, workers):
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=NUM_FRAMES)
    stream = stream_video(path, sampling=SamplingSpec(num_frames=200), workers=workers)
    assert num_workers() == 0  # nothing runs before the first frame is asked for
    assert next(stream.frames).target == 0
    assert num_workers() == (0 if workers == 1 else min(workers, 4))
    stream.frames.close()
    assert num_workers() == 0


def test_few_sampled_frames_wait_to_be_taken(tmp_path, monkeypatch):
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=NUM_FRAMES)
    made = 0
    resized = decode._resized
    lock = threading.Lock()

    def counted(picture, plan):
        nonlocal made
        with lock:
            made += 1
        return resized(picture, plan)

    monkeypatch.setattr(decode, "_resized", counted)
    monkeypatch.setattr(decode, "BYTES_AHEAD", 0)
    monkeypatch.setattr(decode, "LEAST_AHEAD", 2)
    most = 0
    stream = stream_video(path, sampling=SamplingSpec(num_frames=NUM_FRAMES), workers=2)
    for taken, _ in enumerate(stream.frames):
        most = max(most, made - taken - 1)
    assert most <= 2 * 2 * 2 + 2
    assert made == NUM_FRAMES


def test_workers_are_a_number_of_at_least_one(tmp_path):
    path = vf.write_video(tmp_path / "clip.mp4")
    for workers in (0, -1, 2.0, True):
        with pytest.raises(UsageError, match=r"workers=.*: want an int of at least 1"):
            read_video(path, workers=workers)


def test_short_videos_are_read_by_one_worker_and_long_ones_by_all_cores(tmp_path, monkeypatch):
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=NUM_FRAMES)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    started = []
    run_in_order = decode.run_in_order

    def spy(*args, workers, **options):
        started.append(workers)
        return run_in_order(*args, workers=workers, **options)

    monkeypatch.setattr(decode, "run_in_order", spy)
    clips = [read_video(path)]
    monkeypatch.setattr(decode, "PAYING_PIXELS", 1)
    clips.append(read_video(path))
    assert started == [1, 8]
    assert_same_clips(clips)
