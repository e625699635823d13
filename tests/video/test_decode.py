import gc
import os
import weakref

import av
import numpy as np
import pytest
import video_files as vf
from PIL import Image

from videonsa.errors import BudgetError, UsageError, VideoError
from videonsa.video import parts, source
from videonsa.video.container import SourceFrame
from videonsa.video.decode import pick_frames, probe, read_video
from videonsa.video.framelist import FrameList
from videonsa.video.images import ImageFrames
from videonsa.video.sampling import SamplingSpec

NO_B_FRAMES = ("libx264", "yuv420p", {"bf": "0"})


def spread(total, count):
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def frames_at(times, *, period=0.1, after_error=(), duration=0.0):
    return [
        SourceFrame(
            time=time,
            end=time + max(period, duration),
            after_error=time in after_error,
            damaged=False,
            rgb=lambda: pytest.fail("picking must not make pixels"),
        )
        for time in times
    ]


def picked(frames, targets):
    return [(pick.target, pick.time, pick.stale) for pick in pick_frames(iter(frames), targets)]


def test_the_frame_on_screen_at_a_target_is_taken_with_its_own_time():
    frames = frames_at([0.0, 0.4, 0.5, 2.0])
    assert picked(frames, [0.0, 0.45, 1.0, 2.05]) == [
        (0, 0.0, False),
        (1, 0.4, False),
        (2, 0.5, False),
        (3, 2.0, False),
    ]


def test_a_frame_within_a_millisecond_after_the_target_counts():
    assert picked(frames_at([0.0, 0.067, 0.1]), [2 / 30]) == [(0, 0.067, False)]
    assert picked(frames_at([0.0, 0.069, 0.1]), [2 / 30]) == [(0, 0.0, False)]


def test_a_frame_taken_again_has_the_time_of_the_target():
    frames = frames_at([0.0, 1.0], period=1.0)
    assert picked(frames, [0.1, 0.5, 1.0]) == [(0, 0.0, False), (1, 0.5, False), (2, 1.0, False)]


def test_a_gap_without_errors_repeats_and_a_gap_after_errors_loses():
    targets = [0.0, 1.0, 2.0, 3.0]
    assert picked(frames_at([0.0, 3.0]), targets) == [
        (0, 0.0, False),
        (1, 1.0, False),
        (2, 2.0, True),
        (3, 3.0, False),
    ]
    lossy = frames_at([0.0, 3.0], after_error=[3.0])
    assert picked(lossy, targets) == [(0, 0.0, False), (3, 3.0, False)]


def test_targets_beyond_both_ends_are_lost_but_for_a_tenth_of_a_second():
    frames = frames_at([1.0, 1.1])
    assert picked(frames, [0.0, 0.92, 1.28, 1.32]) == [(1, 1.0, False), (2, 1.1, False)]


@pytest.mark.parametrize("suffix", vf.FORMATS)
def test_formats_give_the_frames_of_the_plan_and_their_times(tmp_path, suffix):
    path = vf.write_video(tmp_path / f"clip.{suffix}", num_frames=60, fps=25)
    clip = read_video(path, sampling=SamplingSpec(fps=5.0))
    expected = spread(60, 12)
    assert (clip.info.width, clip.info.height) == (vf.WIDTH, vf.HEIGHT)
    assert vf.numbers_of(clip.frames) == expected
    assert clip.times == pytest.approx([number / 25 for number in expected], abs=1.1e-3)
    assert clip.frames.shape == (12, 3, clip.plan.height, clip.plan.width)
    assert clip.frames.is_contiguous()
    assert clip.warnings == ()
    assert clip.sampled_fps == pytest.approx(5.0, abs=0.1)


def test_open_gops_give_the_same_frames_after_a_seek(tmp_path):
    codec = ("libx264", "yuv420p", {"bf": "3", "x264-params": "open-gop=1:scenecut=0"})
    path = vf.write_video(tmp_path / "clip.mkv", num_frames=300, gop=12, codec=codec)
    times = [number / 30 for number in (0, 59, 118, 179, 239, 298)]
    clip = read_video(path, sampling=SamplingSpec(timestamps=times))
    assert vf.numbers_of(clip.frames) == [0, 59, 118, 179, 239, 298]
    assert clip.warnings == ()


def test_variable_frame_rate_takes_what_is_on_screen(tmp_path):
    times_ms = [0, 40, 80, 1000, 1010, 1020, 3000, 3500, 3540]
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=9, times_ms=times_ms, codec=NO_B_FRAMES)
    clip = read_video(path, sampling=SamplingSpec(timestamps=[0.0, 0.5, 1.005, 2.9, 3.51]))
    assert vf.numbers_of(clip.frames) == [0, 2, 3, 5, 7]
    assert clip.times == pytest.approx([0.0, 0.08, 1.0, 1.02, 3.5], abs=1e-3)
    assert clip.warnings == ()


def test_frames_still_on_screen_are_repeated_with_the_times_of_the_targets(tmp_path):
    times_ms = [0, 1000, 4000]
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=3, times_ms=times_ms, codec=NO_B_FRAMES)
    clip = read_video(path, sampling=SamplingSpec(timestamps=[0.0, 1.5, 2.5, 3.5, 4.0]))
    assert vf.numbers_of(clip.frames) == [0, 1, 1, 1, 2]
    assert clip.times == pytest.approx([0.0, 1.0, 2.5, 3.5, 4.0], abs=1e-3)


MATRICES = {
    0: (1, 0, 0, 1),
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}


@pytest.mark.parametrize("degrees", MATRICES)
def test_rotation_of_the_display_matrix_is_applied(tmp_path, degrees):
    stored = np.full((64, 128, 3), 20, np.uint8)
    stored[:32, :64] = (220, 20, 20)  # red, top left
    path = vf.write_video(
        tmp_path / "clip.mp4", num_frames=4, size=(64, 128), pictures=[stored] * 4
    )
    vf.set_display_matrix(path, *MATRICES[degrees])
    info = probe(path)
    swapped = degrees in (90, 270)
    assert (info.width, info.height, info.rotation) == (
        *((64, 128) if swapped else (128, 64)),
        degrees,
    )
    frame = read_video(path, sampling=SamplingSpec(num_frames=1)).frames[0].float()
    shown = np.rot90(stored, k=-degrees // 90)
    rows, columns = frame.shape[1:]
    for y, x in ((1, 1), (1, 3), (3, 1), (3, 3)):
        red, _, blue = frame[:, rows * y // 4, columns * x // 4].tolist()
        expected = shown[shown.shape[0] * y // 4, shown.shape[1] * x // 4]
        assert (red > 120) == (expected[0] > 120)
        assert blue < 120


def test_mirrored_picture_is_mirrored_back(tmp_path):
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=4)
    vf.set_display_matrix(path, -1, 0, 0, 1)
    clip = read_video(path, sampling=SamplingSpec(num_frames=2))
    assert vf.numbers_of(clip.frames.flip(-1)) == [0, 3]


def test_odd_sizes(tmp_path):
    path = vf.write_video(
        tmp_path / "clip.mkv", num_frames=6, size=(67, 101), codec=("ffv1", "bgr0", {})
    )
    clip = read_video(path)
    assert (clip.info.width, clip.info.height) == (101, 67)
    assert clip.frames.shape == (4, 3, 56, 112)
    assert vf.numbers_of(clip.frames) == spread(6, 4)


def test_audio_tracks_are_ignored_even_when_longer(tmp_path):
    path = vf.write_video(tmp_path / "clip.mkv", num_frames=30, audio_seconds=3.0)
    clip = read_video(path)
    assert clip.info.has_audio
    assert clip.info.duration == pytest.approx(1.0, abs=0.01)
    assert vf.numbers_of(clip.frames) == spread(30, 4)
    assert clip.warnings == ()


def test_duration_of_a_live_recording_is_found_by_reading_it(tmp_path):
    path = vf.write_video(tmp_path / "clip.mkv", container_options={"live": "1"})
    with av.open(str(path)) as container:
        assert container.duration is None
    info = probe(path)
    assert info.duration == pytest.approx(2.0, abs=0.05)
    assert info.num_frames == 60
    assert vf.numbers_of(read_video(path).frames) == spread(60, 4)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "avi", "ts"])
def test_damage_in_the_middle_is_reported_and_the_rest_used(tmp_path, suffix, capfd):
    path = vf.write_video(tmp_path / f"clip.{suffix}", num_frames=600)
    vf.overwrite(path, 0.4, 0.6)
    clip = read_video(path, sampling=SamplingSpec(fps=4.0))
    assert clip.warnings
    assert all("\n" not in line for line in clip.warnings)
    assert len(clip.frames) == len(clip.times) == clip.plan.num_frames
    sound = [
        (round(time * 30), vf.number_of(frame))
        for time, frame in zip(clip.times, clip.frames, strict=True)
        if time < 5.0 or (time > 17.0 and suffix != "avi")  # AVI counts frames: no timestamps
    ]
    assert len(sound) >= (20 if suffix == "avi" else 30)
    assert all(stated == seen for stated, seen in sound)
    assert capfd.readouterr().err == ""


def test_frames_that_do_not_decode_are_counted(tmp_path):
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=300, gop=30)
    vf.overwrite(path, 0.4, 0.6)
    clip = read_video(path, sampling=SamplingSpec(fps=10.0))
    lost = 100 - len(clip.frames)
    assert lost > 0
    assert any(line.startswith(f"{lost} of 100 frames lost between") for line in clip.warnings)


@pytest.mark.parametrize("suffix", ["mkv", "webm", "mp4", "avi"])
def test_a_file_that_ends_early_gives_its_beginning(tmp_path, suffix):
    options = {"movflags": "faststart"} if suffix == "mp4" else None
    path = vf.write_video(tmp_path / f"clip.{suffix}", num_frames=300, container_options=options)
    vf.truncate(path, 0.5)
    clip = read_video(path, sampling=SamplingSpec(fps=4.0))
    # The last frame may repeat the one before the cut: that depends on the decoder threads.
    wanted = [round(time * 30) for time in clip.times]
    assert vf.numbers_of(clip.frames)[:-1] == wanted[:-1]
    assert len(clip.frames) >= 10
    if suffix != "avi":  # whose duration is estimated anew from what is there
        assert "frames lost between" in clip.warnings[0]
        assert len(clip.frames) < 40


def test_mp4_without_its_index_says_that_it_was_cut_off(tmp_path):
    path = vf.write_video(tmp_path / "clip.mp4")
    vf.truncate(path, 0.7)
    with pytest.raises(VideoError, match=r"clip.mp4: .* cut off"):
        probe(path)


def test_files_that_are_no_video_get_one_clear_line(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("Dear diary, " * 200)
    (tmp_path / "notes.txt").write_text("Dear diary, " * 200)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "readme.md").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "text.png").write_text("Dear diary")
    vf.write_audio(tmp_path / "sound.m4a")
    for name, message in {
        "missing.mp4": "no such file",
        "empty.mp4": "an empty file",
        "text.mp4": r"not a video that can be opened",
        "notes.txt": "a text file",
        "folder": "a folder without images",
        "pipe.mp4": "not a regular file",
        "text.png": "not an image that can be read",
        "sound.m4a": r"no video stream \(it holds audio\)",
    }.items():
        for read in (probe, read_video):
            with pytest.raises(VideoError, match=f"{name}: {message}.*: .*") as caught:
                read(tmp_path / name)
            assert "\n" not in str(caught.value)


def test_paths_that_cannot_be_looked_up_get_one_clear_line(tmp_path):
    for name in ("x" * 5000, "null\0byte"):
        with pytest.raises(VideoError, match=r"cannot be read: .*: name|no such file"):
            probe(tmp_path / name)


def test_timestamps_after_the_end_are_refused_with_the_duration(tmp_path):
    path = vf.write_video(tmp_path / "clip.mp4")
    with pytest.raises(UsageError, match=r"timestamp 2.5 s: want at most the duration .* 2 s"):
        read_video(path, sampling=SamplingSpec(timestamps=[1.0, 2.5]))


def test_one_frame_is_a_clip(tmp_path):
    for suffix in ("mp4", "mkv", "gif"):
        path = vf.write_video(tmp_path / f"clip.{suffix}", num_frames=1)
        clip = read_video(path)
        assert clip.times == (0.0,)
        assert clip.plan.grid[0] == 1


def test_8k_frames_are_served(tmp_path):
    size = (4320, 7680)
    path = vf.write_video(
        tmp_path / "clip.avi", num_frames=2, size=size, codec=("mjpeg", "yuvj420p", {})
    )
    clip = read_video(path)
    assert (clip.info.height, clip.info.width) == size
    assert vf.numbers_of(clip.frames) == [0, 1]
    assert clip.frames.shape[2:] == (168, 280)


def test_odd_file_names_open(tmp_path):
    path = vf.write_video(tmp_path / "a b:c%03d?#.mp4", num_frames=4)
    assert vf.numbers_of(read_video(path).frames) == [0, 1, 2, 3]


def test_a_later_playlist_cannot_open_other_addresses(tmp_path):
    path = tmp_path / "list.mp4"
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/clip.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError):
        probe(path)


def test_folder_of_images_is_two_frames_a_second_in_natural_order(tmp_path):
    for number in range(12):
        Image.fromarray(vf.picture(number)).save(tmp_path / f"frame{number}.png")
    (tmp_path / ".hidden.png").write_text("not a picture")
    clip = read_video(tmp_path)
    assert vf.numbers_of(clip.frames) == list(range(12))
    assert clip.times == tuple(number / 2 for number in range(12))
    assert clip.info.duration == 6.0
    assert clip.sampled_fps == 2.0
    assert vf.numbers_of(read_video(tmp_path, sampling=SamplingSpec(num_frames=3)).frames) == [
        0,
        6,
        11,
    ]


def test_a_broken_image_in_a_folder_is_reported(tmp_path):
    for number in range(6):
        Image.fromarray(vf.picture(number)).save(tmp_path / f"frame{number}.jpg")
    (tmp_path / "frame3.jpg").write_bytes(b"\xff\xd8\xff")
    clip = read_video(tmp_path)
    assert vf.numbers_of(clip.frames) == [0, 1, 2, 4, 5]
    assert clip.times == (0.0, 0.5, 1.0, 2.0, 2.5)
    assert clip.warnings == (
        "1 of 6 frames lost between 1.50 s and 1.50 s: the file is damaged or ends early",
    )


def test_image_is_a_clip_of_one_frame(tmp_path):
    Image.fromarray(vf.picture(5)).save(tmp_path / "image.jpg")
    clip = read_video(tmp_path / "image.jpg")
    assert vf.numbers_of(clip.frames) == [5]
    assert clip.times == (0.0,)
    assert clip.info.duration == 0.0


def test_exif_orientation_of_an_image_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise
    turned = np.ascontiguousarray(np.rot90(vf.picture(5)))
    Image.fromarray(turned).save(tmp_path / "image.jpg", exif=exif)
    clip = read_video(tmp_path / "image.jpg")
    assert (clip.info.width, clip.info.height) == (vf.WIDTH, vf.HEIGHT)
    assert vf.numbers_of(clip.frames) == [5]


def test_transparent_parts_of_an_image_become_white(tmp_path):
    Image.new("RGBA", (56, 56), (0, 0, 0, 0)).save(tmp_path / "image.png")
    assert read_video(tmp_path / "image.png").frames.min() == 255


def test_a_file_of_which_nothing_decodes_is_an_error(tmp_path):
    path = vf.write_video(tmp_path / "clip.mp4", container_options={"movflags": "faststart"})
    data = path.read_bytes()
    pictures = data.index(b"mdat") + 4
    path.write_bytes(data[:pictures] + b"\xff" * (len(data) - pictures))
    with pytest.raises(VideoError, match=r"no picture of its h264 stream decodes|none of the"):
        read_video(path)


def test_progress_bar_shows_on_demand_only(tmp_path, monkeypatch, capsys):
    path = vf.write_video(tmp_path / "clip.mp4")
    read_video(path)
    assert capsys.readouterr().err == ""
    read_video(path, progress=True)
    assert capsys.readouterr().err == ""  # done within a second
    monkeypatch.setattr(parts, "PROGRESS_DELAY", 0.0)
    read_video(path, progress=True)
    assert "decoding" in capsys.readouterr().err


def test_decoded_frames_do_not_wait_for_the_garbage_collector(tmp_path):
    path = vf.write_video(tmp_path / "clip.mp4")
    gc.collect()
    gc.disable()
    try:
        assert len(read_video(path, sampling=SamplingSpec(num_frames=60)).frames) == 60
        left = [held for held in gc.get_objects() if type(held) is av.VideoFrame]
    finally:
        gc.enable()
    assert len(left) <= 2  # the one that was asked for the rotation


def test_more_frames_than_memory_is_an_error_before_decoding(tmp_path):
    path = vf.write_video(tmp_path / "clip.mp4")
    sampling = SamplingSpec(timestamps=[0.5] * 10**6, min_pixels=10**9, max_pixels=10**9)
    with pytest.raises(BudgetError, match=r"1000000 frames of .* GB, more than there is: take"):
        read_video(path, sampling=sampling)


def test_frames_at_the_size_of_the_source_are_let_go_at_once(tmp_path, monkeypatch):
    for number in range(40):
        Image.fromarray(vf.picture(number)).save(tmp_path / f"frame{number}.png")
    alive = weakref.WeakSet()
    most = 0

    class Loader:
        """Stands for what a decoded frame holds."""

        def __init__(self, rgb):
            self.rgb = rgb

        def __call__(self):
            return self.rgb()

    class Source(ImageFrames):
        def frames(self):
            nonlocal most
            for frame in super().frames():
                loader = Loader(frame.rgb)
                alive.add(loader)
                most = max(most, len(alive))
                yield frame._replace(rgb=loader)
                del loader

    monkeypatch.setattr(source, "ImageFrames", Source)
    assert vf.numbers_of(read_video(tmp_path).frames) == list(range(40))
    assert 1 <= most <= 4


def test_list_of_images_is_a_video_at_its_rate(tmp_path):
    paths = []
    for number in (3, 1, 2, 5):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(vf.picture(number)).save(paths[-1])
    frames = FrameList(tuple(paths), fps=4.0)
    info = probe(frames)
    assert (info.duration, info.fps, info.num_frames) == (1.0, 4.0, 4)
    assert (info.height, info.width) == (vf.HEIGHT, vf.WIDTH)
    clip = read_video(frames, sampling=SamplingSpec(fps=4.0))
    assert vf.numbers_of(clip.frames) == [3, 1, 2, 5]
    assert clip.times == (0.0, 0.25, 0.5, 0.75)


def test_list_of_images_without_one_of_them_loses_that_frame(tmp_path):
    Image.fromarray(vf.picture(1)).save(tmp_path / "1.png")
    frames = FrameList((tmp_path / "1.png", tmp_path / "2.png"))
    clip = read_video(frames, sampling=SamplingSpec(min_frames=2))
    assert vf.numbers_of(clip.frames) == [1]
    assert "1 of 2 frames lost" in clip.warnings[0]


@pytest.mark.parametrize("given", [{"frames": ()}, {"frames": ("a.png",), "fps": 0.0}])
def test_list_of_images_that_is_no_video_is_refused(given):
    with pytest.raises(UsageError, match="want"):
        FrameList(**given)
