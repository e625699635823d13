"""What is followed while it grows gives the frames and times of the finished source, bit by bit."""

import os
import threading
import time
from itertools import islice

import pytest
import torch
import video_files as vf
from PIL import Image

from videonsa.errors import UsageError, VideoError
from videonsa.video.decode import read_video
from videonsa.video.follow import follow_video
from videonsa.video.framelist import FrameList
from videonsa.video.sampling import SamplingSpec

POLL = 0.01
IDLE = 0.4
STEPS = 12
NUM_FRAMES = 60
H264 = ("libx264", "yuv420p", {"bf": "2"})
RECORDINGS = {
    "transport stream": ("ts", None, {}),
    "h264 with B-frames in a transport stream": ("ts", H264, {}),
    "matroska": ("mkv", None, {}),
    "live matroska, without an index": ("mkv", None, {"live": "1"}),
    "webm": ("webm", None, {}),
    "mp4 in fragments": ("mp4", None, {"movflags": "frag_keyframe+empty_moov"}),
    "mp4 with its index first": ("mp4", None, {"movflags": "faststart"}),
}


class Recorder:
    """Writes bytes to a file little by little, in a thread of its own."""

    def __init__(self, path, data, *, steps=STEPS, pause=0.02):
        path.write_bytes(b"")
        self._path, self._data, self._steps, self._pause = path, data, steps, pause
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        size = len(self._data)
        for step in range(self._steps):
            with self._path.open("ab") as file:
                file.write(
                    self._data[size * step // self._steps : size * (step + 1) // self._steps]
                )
            time.sleep(self._pause)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join()


def wanted(fps, *, start=0.0, until):
    times = (start + k / fps for k in range(10_000))
    return [time for time in times if time < until - 1e-3]


def taken(followed):
    frames = list(followed.frames)
    return [frame.time for frame in frames], torch.stack(
        [torch.from_numpy(frame.pixels) for frame in frames]
    )


def assert_as_offline(followed, path, *, fps, start=0.0, **size):
    times, pixels = taken(followed)
    stated = read_video(path).info.duration
    targets = wanted(fps, start=start, until=stated)
    clip = read_video(path, sampling=SamplingSpec(timestamps=targets, **size))
    assert times == list(clip.times)
    assert torch.equal(pixels, clip.frames)
    return times, pixels


@pytest.mark.parametrize("kind", RECORDINGS)
def test_a_recording_gives_what_the_finished_file_gives(tmp_path, kind):
    suffix, codec, options = RECORDINGS[kind]
    whole = vf.write_video(
        tmp_path / f"whole.{suffix}",
        num_frames=NUM_FRAMES,
        codec=codec,
        container_options=options,
    )
    path = tmp_path / f"growing.{suffix}"
    with Recorder(path, whole.read_bytes()):
        followed = follow_video(path, sampling=SamplingSpec(fps=7.0), poll=POLL, idle=IDLE)
        times, pixels = assert_as_offline(followed, whole, fps=7.0)
    assert len(times) == 14
    assert vf.numbers_of(pixels) == [30 * k // 7 for k in range(14)]
    assert followed.warnings == ()


@pytest.mark.parametrize("codec", [None, H264])
def test_a_recording_that_begins_anew_goes_on_where_it_ended(tmp_path, codec):
    parts = [
        vf.write_video(tmp_path / f"{n}.ts", num_frames=45, gop=12, codec=codec).read_bytes()
        for n in range(3)
    ]
    whole, path = tmp_path / "whole.ts", tmp_path / "growing.ts"
    whole.write_bytes(b"".join(parts))
    with Recorder(path, whole.read_bytes()):
        followed = follow_video(path, sampling=SamplingSpec(fps=10.0), poll=POLL, idle=IDLE)
        times, _ = assert_as_offline(followed, whole, fps=10.0)
    assert len(times) == 45


@pytest.mark.parametrize("fps", [2.0, 45.0])
def test_start_end_and_size_are_those_of_the_sampling(tmp_path, fps):
    whole = vf.write_video(tmp_path / "whole.mkv", num_frames=NUM_FRAMES)
    sampling = SamplingSpec(fps=fps, start=0.55, max_pixels=28 * 28 * 4)
    followed = follow_video(whole, sampling=sampling, poll=POLL, idle=0)
    assert (followed.height, followed.width) == (28, 84)
    times, _ = assert_as_offline(followed, whole, fps=fps, start=0.55, max_pixels=28 * 28 * 4)
    assert len(times) == (3 if fps == 2.0 else 66)
    cut = follow_video(
        whole, sampling=SamplingSpec(fps=fps, start=0.55, end=1.2), poll=POLL, idle=None
    )
    assert taken(cut)[0] == [time for time in times if time < 1.2]  # it does not wait for more


def test_frames_come_while_the_recording_goes_on(tmp_path):
    data = vf.write_video(tmp_path / "whole.ts", num_frames=NUM_FRAMES).read_bytes()
    path = tmp_path / "growing.ts"
    path.write_bytes(data[: len(data) // 2])
    followed = follow_video(path, sampling=SamplingSpec(fps=10.0), poll=POLL, idle=None)
    before = [frame.time for frame in islice(followed.frames, 5)]
    assert before == pytest.approx([k / 10 for k in range(5)])
    with path.open("ab") as file:
        file.write(data[len(data) // 2 :])
    after = [frame.time for frame in islice(followed.frames, 10)]
    assert after == pytest.approx([k / 10 for k in range(5, 15)])
    followed.frames.close()


@pytest.mark.parametrize("suffix", ["mp4", "mov", "avi", "flv"])
def test_a_finished_file_is_read_and_not_waited_for(tmp_path, suffix):
    codec = H264 if suffix == "flv" else None
    path = vf.write_video(tmp_path / f"clip.{suffix}", num_frames=NUM_FRAMES, codec=codec)
    os.utime(path, (0, time.time() - 100))
    start = time.monotonic()
    followed = follow_video(path, sampling=SamplingSpec(fps=5.0), idle=60)
    assert_as_offline(followed, path, fps=5.0)
    assert time.monotonic() - start < 5


def test_an_mp4_that_gets_its_index_at_the_end_is_refused_in_one_line(tmp_path):
    data = vf.write_video(tmp_path / "whole.mp4", num_frames=NUM_FRAMES).read_bytes()
    path = tmp_path / "growing.mp4"
    for size in (len(data) // 2, data.index(b"moov") + 40):
        path.write_bytes(data[:size])
        with pytest.raises(
            VideoError, match=r"before: record mkv, ts, or mp4 in fragments"
        ) as told:
            follow_video(path, poll=POLL, idle=None)
        assert "\n" not in str(told.value)


def test_damage_is_warned_of_and_not_fatal(tmp_path):
    whole = vf.write_video(tmp_path / "whole.ts", num_frames=120)
    vf.overwrite(whole, 0.4, 0.5)
    path = tmp_path / "growing.ts"
    with Recorder(path, whole.read_bytes()):
        followed = follow_video(path, sampling=SamplingSpec(fps=10.0), poll=POLL, idle=IDLE)
        times, pixels = taken(followed)
    assert any("lost" in line or "damaged" in line for line in followed.warnings)
    assert times[-1] > 3.8
    assert vf.number_of(pixels[-1]) == round(times[-1] * 30)


def test_a_file_that_becomes_shorter_ends_and_says_so(tmp_path):
    data = vf.write_video(tmp_path / "whole.ts", num_frames=NUM_FRAMES).read_bytes()
    path = tmp_path / "growing.ts"
    path.write_bytes(data)
    followed = follow_video(path, sampling=SamplingSpec(fps=5.0), poll=POLL, idle=None)
    next(followed.frames)
    path.write_bytes(b"")
    assert len(list(followed.frames)) > 5
    assert followed.warnings == ("it became shorter while it was read: what follows is not read",)


@pytest.mark.parametrize("place", ["opening", "between frames"])
def test_an_interrupt_while_it_waits_is_passed_on(tmp_path, monkeypatch, place):
    data = vf.write_video(tmp_path / "whole.ts", num_frames=NUM_FRAMES).read_bytes()
    path = tmp_path / "growing.ts"
    path.write_bytes(data[:1000] if place == "opening" else data)

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("videonsa.video.growing.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        taken(follow_video(path, poll=POLL, idle=None))


def save(path, number):
    Image.fromarray(vf.picture(number)).save(path)


def test_a_folder_that_is_filled_gives_what_the_full_one_gives(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()

    def fill():
        for number in range(8, 13):
            whole = tmp_path / f"{number}.png"
            save(whole, number)
            data = whole.read_bytes()
            path = folder / f"img{number}.png"
            path.write_bytes(data[: len(data) // 2])  # half an image is not read
            time.sleep(0.03)
            path.write_bytes(data)

    writer = threading.Thread(target=fill)
    writer.start()
    followed = follow_video(
        FrameList(folder, fps=4), sampling=SamplingSpec(fps=3.0), poll=POLL, idle=IDLE
    )
    times, pixels = taken(followed)
    writer.join()
    sampling = SamplingSpec(timestamps=wanted(3.0, until=5 / 4))
    clip = read_video(FrameList(folder, fps=4), sampling=sampling)
    assert times == list(clip.times)
    assert torch.equal(pixels, clip.frames)
    assert vf.numbers_of(pixels) == [8, 9, 10, 12]
    assert followed.warnings == ()


def test_an_image_is_taken_as_soon_as_it_is_there(tmp_path):
    save(tmp_path / "0.png", 0)
    followed = follow_video(tmp_path, sampling=SamplingSpec(fps=2.0), poll=POLL, idle=None)
    assert vf.number_of(next(followed.frames).pixels) == 0
    save(tmp_path / "1.png", 1)
    assert vf.number_of(next(followed.frames).pixels) == 1
    followed.frames.close()


def test_images_may_have_the_times_at_which_they_were_written(tmp_path):
    written = [100.0, 100.7, 103.0, 103.1]
    for number, seconds in enumerate(written):
        save(tmp_path / f"{number}.png", number)
        os.utime(tmp_path / f"{number}.png", (0, seconds))
    followed = follow_video(tmp_path, sampling=SamplingSpec(fps=1.0), as_written=True, idle=0)
    times, pixels = taken(followed)
    assert vf.numbers_of(pixels) == [0, 1, 1, 2]
    assert times == pytest.approx([0.0, 0.7, 2.0, 3.0])
    assert len(followed.warnings) == 1  # the second was taken again after more than a second


def test_images_that_are_late_or_damaged_are_left_out_and_counted(tmp_path):
    for number in (1, 2, 3):
        save(tmp_path / f"{number}.png", number)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    os.utime(tmp_path / "2.png", (0, 100.0))
    followed = follow_video(tmp_path, sampling=SamplingSpec(fps=2.0), poll=POLL, idle=IDLE)
    first = next(followed.frames)
    save(tmp_path / "0.png", 0)
    rest = list(followed.frames)
    assert vf.numbers_of([first.pixels, *(frame.pixels for frame in rest)]) == [1, 3]
    assert followed.warnings == (
        "images left out: 1, which came after images whose names follow theirs",
        "frames lost: 1, where the source is damaged",
    )


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("nothing.ts", "no such file"),
        ("image.png", "an image: want"),
        ("text.mkv", "not a video that can be opened|text file"),
        ("empty", "no image came within 0 s"),
        ("empty.ts", "an empty file, and nothing was written to it"),
        ("rtsp://camera/1", "an address, not a file"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_line(tmp_path, monkeypatch, source, what):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "image.png", 0)
    (tmp_path / "text.mkv").write_text("no video\n" * 100)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.ts").touch()
    with pytest.raises(VideoError, match=what):
        follow_video(source, idle=0)


def test_sampling_that_needs_the_end_is_refused(tmp_path):
    for changes in ({"num_frames": 4}, {"timestamps": [0.0]}, {"mode": "keyframes"}):
        with pytest.raises(UsageError, match="of a source that grows"):
            follow_video(tmp_path, sampling=SamplingSpec(**changes))
    with pytest.raises(UsageError, match="want seconds"):
        follow_video(tmp_path, poll=0)
