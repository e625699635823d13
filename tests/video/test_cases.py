"""Files as people meet them: joined, trimmed without encoding, not square, of several streams."""

import re
import struct
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
import video_files as vf
from av.stream import Disposition

from videonsa.errors import UsageError, VideoError
from videonsa.machine import usable_cores
from videonsa.video import container, decode
from videonsa.video.decode import probe, read_video
from videonsa.video.gpu import GpuSource
from videonsa.video.sampling import SamplingSpec
from videonsa.video.segments import whole_layout

WORKERS = [1, 3]
ALL = SamplingSpec(num_frames=10_000)
MPEG2 = ("mpeg2video", "yuv420p", {"bf": "2"})


def joined(tmp_path, suffix, *lengths, codec=None):
    """Recordings put one behind the other as bytes; numbers begin anew in each."""
    path = tmp_path / f"joined.{suffix}"
    parts = [
        vf.write_video(tmp_path / f"part{n}.{suffix}", num_frames=n, fps=25, codec=codec)
        for n in lengths
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def read_with_each(path, spec):
    clips = [read_video(path, sampling=spec, workers=workers) for workers in WORKERS]
    assert torch.equal(clips[0].frames, clips[1].frames)
    assert clips[0].times == clips[1].times
    return clips[0]


@pytest.mark.parametrize(
    ("suffix", "codec", "lengths"),
    [
        ("ts", None, (75, 75)),
        ("ts", None, (40, 90)),
        ("ts", None, (90, 40)),
        ("ts", None, (30, 50, 60)),
        ("mpg", MPEG2, (75, 75)),
        ("mpg", MPEG2, (40, 90)),
    ],
)
def test_recordings_joined_back_to_back_are_one_video(tmp_path, suffix, codec, lengths):
    path = joined(tmp_path, suffix, *lengths, codec=codec)
    total = sum(lengths)
    info = probe(path)
    assert (info.num_frames, info.fps) == (total, pytest.approx(25))
    assert info.duration == pytest.approx(total / 25)
    (note,) = info.notes
    assert note.startswith(f"time goes back at {lengths[0] / 25:.2f} s")
    clip = read_with_each(path, ALL)
    assert vf.numbers_of(clip.frames) == [number for n in lengths for number in range(n)]
    assert clip.times == pytest.approx([number / 25 for number in range(total)])
    assert clip.warnings == ()
    assert note in clip.notes


def write_from(path, *, first, at, count=30, fps=25):
    """`count` frames numbered from `first` on, on a clock that begins at `at` seconds."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg2video", rate=fps)
        stream.height, stream.width, stream.pix_fmt = vf.HEIGHT, vf.WIDTH, "yuv420p"
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(vf.picture(first + index), format="rgb24")
            frame.pts = at * fps + index
            frame.time_base = Fraction(1, fps)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("clocks", "what"), [((0, 600), "jumps ahead"), ((50, 5), "goes back")])
def test_recordings_joined_by_other_clocks_are_one_video(tmp_path, clocks, what):
    parts = [write_from(tmp_path / f"{at}.ts", first=100 * n, at=at) for n, at in enumerate(clocks)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    clip = read_with_each(path, ALL)
    assert vf.numbers_of(clip.frames) == [*range(30), *range(100, 130)]
    assert clip.times == pytest.approx([number / 25 for number in range(60)])
    assert clip.info.notes == (f"time {what} at 1.20 s: the second part follows the first",)


def test_a_gap_within_a_recording_stays_one(tmp_path):
    times_ms = [40 * number + (6_000 if number >= 20 else 0) for number in range(40)]
    path = vf.write_video(
        tmp_path / "clip.ts", num_frames=40, times_ms=times_ms,
        codec=("libx264", "yuv420p", {"bf": "0"}),
    )  # fmt: skip
    info = probe(path)
    assert info.duration == pytest.approx(7.6, abs=0.05)
    assert info.notes == ()


@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv"])
def test_time_before_the_first_picture_is_no_part_of_the_video(tmp_path, suffix):
    times_ms = [5000 + 40 * number for number in range(30)]
    codec = None if suffix == "webm" else ("libx264", "yuv420p", {"bf": "2"})
    path = vf.write_video(
        tmp_path / f"clip.{suffix}", num_frames=30, fps=25, times_ms=times_ms, codec=codec
    )
    clip = read_with_each(path, SamplingSpec(num_frames=30))
    assert clip.info.duration == pytest.approx(1.2, abs=0.05)
    assert vf.numbers_of(clip.frames) == list(range(30))
    assert clip.warnings == ()


def test_what_is_transparent_is_white(tmp_path):
    path = tmp_path / "clip.mov"
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[:32, :, 3] = 255
    with av.open(str(path), "w") as file:
        stream = file.add_stream("qtrle", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "argb"
        for index in range(2):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba")
            frame.pts = index
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    frame = read_video(path, sampling=SamplingSpec(num_frames=1)).frames[0]
    rows = frame.shape[1]
    assert frame[:, : rows // 3].max() <= 5
    assert frame[:, -rows // 3 :].min() >= 250


@pytest.mark.parametrize("suffix", ["mkv", "webm", "avi", "gif"])
def test_files_joined_as_bytes_are_read_to_their_end(tmp_path, suffix):
    path = joined(tmp_path, suffix, 60, 60)
    info = probe(path)
    assert (info.num_frames, info.duration) == (120, pytest.approx(4.8, abs=0.01))
    clip = read_with_each(path, ALL)
    assert vf.numbers_of(clip.frames) == 2 * list(range(60))


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", None), ("wmv", ("wmv2", "yuv420p", {})), ("flv", ("libx264", "yuv420p", {}))],
)
def test_a_second_file_that_no_index_knows_is_spoken_of(tmp_path, suffix, codec):
    path = joined(tmp_path, suffix, 30, 40, codec=codec)
    first = (tmp_path / f"part30.{suffix}").stat().st_size
    assert probe(tmp_path / f"part30.{suffix}").notes == ()
    (note,) = probe(path).notes
    assert note.startswith(f"another file begins at byte {first} and is not read")
    assert note in read_video(path).notes


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "avi", "gif"])
def test_sound_files_that_state_their_length_are_not_read_to_know_it(tmp_path, suffix, monkeypatch):
    path = vf.write_video(tmp_path / f"clip.{suffix}", num_frames=60)
    monkeypatch.setattr(container, "scan_packets", lambda packets: pytest.fail("read"))
    assert probe(path).num_frames == 60


def test_joined_recordings_give_exact_frames_where_keyframes_are_asked_for(tmp_path):
    path = joined(tmp_path, "ts", 60, 60)
    clip = read_with_each(path, SamplingSpec(num_frames=4, mode="keyframes"))
    assert vf.numbers_of(clip.frames) == [0, 40, 19, 59]
    assert "exact frames, not keyframes: its timestamps jump back" in clip.notes


def test_single_times_that_are_damaged_join_nothing(tmp_path):
    path = vf.write_video(tmp_path / "clip.ts", num_frames=120, fps=25)
    sound = read_video(path, sampling=ALL)
    data = bytearray(path.read_bytes())
    headers = [
        place
        for place in range(0, len(data), 188)
        if data[place + 1] & 0x40 and (place_of_times(data, place) is not None)
    ]
    for packet in (headers[40], headers[80]):
        place = place_of_times(data, packet)
        data[place + 2] ^= 0x7E  # moves the time by minutes, ahead or back
    path.write_bytes(data)
    clip = read_with_each(path, ALL)
    assert not any("time goes back" in note for note in clip.notes)
    assert clip.info.duration == sound.info.duration
    right = [
        number == round(25 * at)
        for number, at in zip(vf.numbers_of(clip.frames), clip.times, strict=True)
    ]
    assert sum(right) >= 110


def place_of_times(data, packet):
    """Where the first timestamp of a picture stands in a packet of a transport stream."""
    start = data.find(b"\0\0\1\xe0", packet, packet + 188)
    return None if start < 0 or not data[start + 7] & 0x80 else start + 9


def set_edit_list(path, *, first, count, fps):
    """Show `count` frames from number `first` on, as a trim without encoding does."""
    data = bytearray(path.read_bytes())
    (timescale,) = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)
    (media_scale,) = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)
    # elst version 0: type, version and flags, one entry of duration, media time and rate
    entry = data.index(b"elst") + 12
    (delay,) = struct.unpack_from(">I", data, entry + 4)
    struct.pack_into(
        ">II", data, entry, timescale * count // fps, delay + media_scale * first // fps
    )
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("gop", [12, 1000])
@pytest.mark.parametrize(("first", "count"), [(0, 40), (30, 60), (60, 30), (24, 36)])
def test_frames_that_an_edit_list_hides_do_not_count(tmp_path, gop, first, count):
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=90, fps=30, gop=gop)
    set_edit_list(path, first=first, count=count, fps=30)
    info = probe(path)
    assert (info.num_frames, info.fps) == (count, 30.0)
    assert info.duration == pytest.approx(count / 30, abs=2e-3)
    assert info.notes == (f"an edit list shows {count} of the 90 frames in the file",)
    clip = read_with_each(path, ALL)
    assert vf.numbers_of(clip.frames) == list(range(first, first + count))
    assert clip.times == pytest.approx([number / 30 for number in range(count)], abs=1e-3)
    assert clip.warnings == ()
    assert set(info.notes) < set(clip.notes)


def test_frames_beside_a_cut_between_frames_that_need_each_other_are_all_given(tmp_path):
    whole = vf.write_video(tmp_path / "whole.mp4", num_frames=90, fps=30, gop=1000)
    path = tmp_path / "clip.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        end = next(n for n in range(60, 90) if packets[n].pts > packets[n + 1].pts)
        for packet in packets[: end + 1]:  # the last is shown after some that are cut off
            packet.stream = stream
            target.mux(packet)
    set_edit_list(path, first=50, count=14, fps=30)
    clip = read_with_each(path, ALL)
    numbers = vf.numbers_of(clip.frames)
    assert clip.info.num_frames == len(numbers) == len(set(numbers))
    assert max(np.diff(numbers)) > 1
    assert clip.info.fps == 30.0
    assert clip.times == pytest.approx([(number - 50) / 30 for number in numbers], abs=1e-3)


def test_an_edit_list_that_hides_nothing_is_not_spoken_of(tmp_path):
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=30)
    assert b"elst" in path.read_bytes()
    assert probe(path).notes == ()


def test_asking_for_more_frames_than_there_are_says_so(tmp_path):
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=20, fps=10)
    more = read_video(path, sampling=SamplingSpec(num_frames=50))
    assert more.notes == ("50 frames were asked for, and there are 20: all are taken",)
    faster = read_video(path, sampling=SamplingSpec(fps=30.0))
    assert faster.notes == ("30 frames a second were asked for, and there are 10",)
    assert len(more.frames) == len(faster.frames) == 20
    for enough in (SamplingSpec(num_frames=20), SamplingSpec(fps=10.0), SamplingSpec()):
        assert read_video(path, sampling=enough).notes == ()


def test_frames_that_stay_on_screen_for_further_times_are_counted(tmp_path):
    times_ms = [0, 100, 200, 300, 400, 1300]
    path = vf.write_video(
        tmp_path / "clip.mkv", num_frames=6, times_ms=times_ms,
        codec=("libx264", "yuv420p", {"bf": "0"}),
    )  # fmt: skip
    clip = read_with_each(path, SamplingSpec(num_frames=6))
    again = sum(torch.equal(a, b) for a, b in zip(clip.frames, clip.frames[1:], strict=False))
    assert again > 0
    assert clip.notes == (
        f"{again} of 6 frames repeat the one before: it was still on screen at their times",
    )


def write_stretched(path, shape, *, size=(128, 160)):
    """A square of 64 x 64 on the screen, stored in pixels of another shape."""
    picture = np.full((*size, 3), 20, np.uint8)
    high, wide = 64, round(64 / shape)
    picture[32 : 32 + high, 40 : 40 + wide] = 230
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = shape
        for index in range(8):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index
            frame.time_base = Fraction(1, 10)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mov"])
@pytest.mark.parametrize("shape", [Fraction(64, 45), Fraction(1, 2), Fraction(2)])
def test_pixels_that_are_not_square_are_scaled_as_displayed(tmp_path, suffix, shape):
    path = write_stretched(tmp_path / f"clip.{suffix}", shape)
    info = probe(path)
    assert (info.width, info.height) == (round(160 * shape), 128)
    (note,) = info.notes
    assert note == (
        f"pixels of {shape.numerator}:{shape.denominator}: 160x128 is scaled to "
        f"{info.width}x128, as displayed"
    )
    clip = read_video(path, sampling=SamplingSpec(num_frames=2, max_pixels=10**6))
    assert note in clip.notes
    white = clip.frames[0].float().mean(0) > 128
    high, wide = (white.any(dim).sum().item() for dim in (1, 0))
    scale = clip.plan.height / 128
    assert high == pytest.approx(64 * scale, abs=2)
    assert wide == pytest.approx(high, rel=0.15)  # sides are multiples of 28


def test_pixels_that_are_not_square_turn_with_the_picture(tmp_path):
    path = write_stretched(tmp_path / "clip.mp4", Fraction(3, 2))
    vf.set_display_matrix(path, 0, 1, -1, 0)
    info = probe(path)
    assert (info.width, info.height, info.rotation) == (128, 240, 90)


def test_shapes_of_pixels_that_cannot_be_are_taken_for_square(tmp_path):
    path = write_stretched(tmp_path / "clip.mp4", Fraction(2))
    data = bytearray(path.read_bytes())
    struct.pack_into(">II", data, data.index(b"pasp") + 4, 30_000, 1)
    path.write_bytes(data)
    info = probe(path)
    assert (info.width, info.height) == (160, 128)
    assert info.notes == ("pixels of 30000:1 are stated, and taken for square",)


def write_streams(path, *streams):
    """Streams of (height, width, first number, flagged as default)."""
    with av.open(str(path), "w") as file:
        out = []
        for height, width, number, flagged in streams:
            stream = file.add_stream("libx264", rate=10)
            stream.height, stream.width = height, width
            stream.pix_fmt = "yuv420p"
            stream.disposition = Disposition.default if flagged else Disposition(0)
            out.append((stream, number))
        for index in range(10):
            for stream, number in out:
                frame = av.VideoFrame.from_ndarray(
                    vf.picture(number + index, height=stream.height, width=stream.width),
                    format="rgb24",
                )
                frame.pts = index
                frame.time_base = Fraction(1, 10)
                file.mux(stream.encode(frame))
        for stream, _ in out:
            file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("streams", "number", "why"),
    [
        ([(64, 160, 0, False), (64, 320, 100, True)], 2, "flagged as default"),
        ([(64, 320, 0, True), (64, 160, 100, False)], 1, "flagged as default"),
        ([(64, 320, 0, False), (64, 160, 100, True)], 2, "flagged as default"),
        ([(64, 160, 0, False), (64, 320, 100, False)], 2, "the largest"),
        ([(64, 160, 0, True), (64, 320, 100, True)], 2, "flagged as default"),
        ([(64, 160, 0, False), (64, 160, 100, False)], 1, "the first of equals"),
    ],
)
def test_the_default_stream_is_read_else_the_largest(tmp_path, streams, number, why):
    path = write_streams(tmp_path / "clip.mkv", *streams)
    height, width, first, _ = streams[number - 1]
    info = probe(path)
    assert (info.width, info.height) == (width, height)
    assert info.notes == (
        f"2 video streams: number {number}, {why}, {width}x{height}, is read and no other",
    )
    clip = read_with_each(path, ALL)
    assert vf.numbers_of(clip.frames) == list(range(first, first + 10))
    assert set(info.notes) < set(clip.notes)


def test_the_gpu_is_not_asked_for_what_it_may_see_otherwise(tmp_path):
    many = write_streams(tmp_path / "clip.mkv", (64, 160, 0, False), (64, 320, 100, True))
    back = joined(tmp_path, "ts", 30, 30)
    for path, what in {many: "one of several video streams", back: "recordings put one"}.items():
        with pytest.raises(UsageError, match=f"{what}.*want --decoder cpu"):
            GpuSource(path, open_decoder=lambda _: pytest.fail("opened"))


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("list.mp4", "ffconcat version 1.0\nfile 'clip.ts'\n", "a list of files"),
        ("list.m3u8", "#EXTM3U\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n", "a playlist"),
        ("talk.srt", "1\n00:00:01,000 --> 00:00:02,000\nhello\n\n" * 20, "a text file"),
        ("drawing.mp4", '<svg xmlns="http://www.w3.org/2000/svg"/>' * 20, "an SVG drawing"),
        ("frame%03d.jpg.mkv", "\xff\xd8\xff\xe0", "a JPEG image"),
    ],
)
def test_formats_that_are_no_video_are_refused_by_what_they_are(tmp_path, name, text, kind):
    vf.write_video(tmp_path / "clip.ts", num_frames=5)
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(VideoError, match=f": {kind}: want mp4") as caught:
        probe(path)
    assert "\n" not in str(caught.value)


def claim_size(path, side, *, header):
    """Let pictures of a motion JPEG state other sides, and the headers of its AVI too if wanted."""
    data = bytearray(path.read_bytes())
    if header:
        for name, offset in ((b"avih", 40), (b"strf", 12)):
            struct.pack_into("<II", data, data.index(name) + offset, side, side)
    place = data.find(b"\xff\xc0")
    while place >= 0:
        struct.pack_into(">HH", data, place + 5, side, side)
        place = data.find(b"\xff\xc0", place + 1)
    path.write_bytes(data)
    return path


CLAIMS = """
import sys
from pathlib import Path
from videonsa.errors import VideoError
from videonsa.video.decode import read_video
for path in sys.argv[1:]:
    try:
        read_video(path)
    except VideoError as error:
        print(error)
# Not getrusage: what it says also counts the process that this one was forked from.
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""


def test_pictures_that_claim_to_be_huge_take_no_memory(tmp_path):
    mjpeg = ("mjpeg", "yuvj420p", {})
    picture, both = (
        claim_size(
            vf.write_video(tmp_path / f"{header}.avi", num_frames=3, codec=mjpeg),
            16_000,
            header=header,
        )
        for header in (False, True)
    )
    gif = vf.write_video(tmp_path / "clip.gif", num_frames=3)
    data = bytearray(gif.read_bytes())
    struct.pack_into("<HH", data, 6, 8000, 8000)
    gif.write_bytes(data)
    paths = [picture, both, gif]
    done = subprocess.run(
        [sys.executable, "-c", CLAIMS, *map(str, paths)], capture_output=True, text=True, check=True
    )
    *errors, memory = done.stdout.splitlines()
    assert len(errors) == 3
    for error in errors[:2]:
        assert "undamaged video of at most 67 megapixels" in error or "16000x16000" in error
    assert re.search("pictures of 8000x8000 bgra take 244 MiB each: want at most 67", errors[2])
    assert int(memory) < 700


def test_pictures_beyond_8k_are_scaled_as_they_are_decoded(tmp_path, monkeypatch):
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=8, size=(240, 320))
    exact = read_video(path)
    monkeypatch.setattr(container, "FULL_PIXELS", 160 * 120)
    clip = read_video(path)
    (note,) = clip.info.notes
    assert note.endswith("320x240 is scaled to 160x120 as it is decoded")
    assert note in clip.notes
    assert (clip.info.width, clip.info.height) == (320, 240)
    assert clip.frames.shape == exact.frames.shape
    assert vf.numbers_of(clip.frames) == vf.numbers_of(exact.frames)


def test_large_pictures_are_read_by_fewer_workers(tmp_path):
    layout = whole_layout([0.0])
    info = probe(vf.write_video(tmp_path / "clip.mp4", num_frames=4))
    long = replace(info, num_frames=10**5)
    most = decode._paying_workers(long, layout)
    assert most == min(usable_cores(), decode.MOST_WORKERS)
    assert decode._paying_workers(replace(long, width=7680, height=4320), layout) <= 2
    assert decode._paying_workers(replace(long, width=10**5, height=10**5), layout) == 1
