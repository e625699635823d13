"""The GPU's decoder, as far as it goes without one: a stand-in decodes what torchcodec would."""

from importlib.util import find_spec
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
import video_files as vf
from PIL import Image

from videonsa.errors import UsageError, VideoError
from videonsa.video import gpu
from videonsa.video.decode import read_video, stream_source
from videonsa.video.gpu import GpuSource
from videonsa.video.parts import Reading
from videonsa.video.sampling import SamplingSpec
from videonsa.video.source import open_source

LATE = ("flv", ("libx264", "yuv420p", {"bf": "2"}))
FORMATS = {"mp4": ("mp4", None), "mkv": ("mkv", None), "begins late": LATE}


class StandIn:
    """Frames by time as torchcodec documents: that with begin <= time < end, else an error."""

    cpu_fallback = False

    def __init__(self, path):
        self.asked = []
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            self.frames = [
                (
                    frame.time,
                    float(frame.duration * frame.time_base),
                    frame.to_ndarray(format="rgb24"),
                )
                for frame in container.decode(stream)
            ]
        self.metadata = SimpleNamespace(
            begin_stream_seconds=self.frames[0][0], end_stream_seconds=sum(self.frames[-1][:2])
        )

    def get_frames_played_at(self, seconds):
        self.asked.append(list(seconds))
        assert all(
            self.metadata.begin_stream_seconds <= at < self.metadata.end_stream_seconds
            for at in seconds
        )
        begins = np.array([time for time, _, _ in self.frames])
        chosen = [self.frames[int(np.flatnonzero(begins <= at)[-1])] for at in seconds]
        return SimpleNamespace(
            data=torch.stack([torch.from_numpy(rgb).permute(2, 0, 1) for _, _, rgb in chosen]),
            pts_seconds=torch.tensor([time for time, _, _ in chosen], dtype=torch.float64),
            duration_seconds=torch.tensor([span for _, span, _ in chosen], dtype=torch.float64),
        )


def read_by_gpu(path, spec, **stand_in):
    opened = []

    def open_decoder(path):
        opened.append(StandIn(path))
        vars(opened[0]).update(stand_in)
        return opened[0]

    stream = stream_source(GpuSource(path, open_decoder=open_decoder), spec)
    reading = Reading(stream)
    (frames,) = reading.parts(stream.plan.num_frames, progress=False)
    return frames, reading, opened[0]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("sampling", [{"fps": 2.0}, {"fps": 30.0}, {"num_frames": 7}])
def test_frames_times_and_warnings_are_those_of_the_other_decoder(tmp_path, name, sampling):
    suffix, codec = FORMATS[name]
    path = vf.write_video(tmp_path / f"clip.{suffix}", num_frames=90, codec=codec)
    spec = SamplingSpec(**sampling)
    clip = read_video(path, sampling=spec)
    frames, reading, _ = read_by_gpu(path, spec)
    assert torch.equal(frames, clip.frames)
    assert reading.times == pytest.approx(clip.times)
    assert (reading.warnings, reading.plan) == (clip.warnings, clip.plan)


def test_frames_still_on_screen_are_taken_again(tmp_path):
    times_ms = [0, 100, 1500, 1600, 3000]
    path = vf.write_video(
        tmp_path / "clip.mkv", num_frames=5, times_ms=times_ms, codec=("libx264", "yuv420p", {})
    )
    spec = SamplingSpec(timestamps=[0.0, 0.05, 0.5, 1.4, 1.5, 2.9, 3.0])
    clip = read_video(path, sampling=spec)
    frames, reading, _ = read_by_gpu(path, spec)
    assert vf.numbers_of(frames) == vf.numbers_of(clip.frames) == [0, 0, 1, 1, 2, 3, 4]
    assert reading.times == pytest.approx(clip.times)


def test_few_frames_are_on_the_gpu_together(tmp_path, monkeypatch):
    path = vf.write_video(tmp_path / "clip.mp4", num_frames=30)
    monkeypatch.setattr(gpu, "BATCH_BYTES", 3 * vf.WIDTH * vf.HEIGHT * 8)
    _, _, decoder = read_by_gpu(path, SamplingSpec(num_frames=30))
    assert [len(seconds) for seconds in decoder.asked] == [8, 8, 8, 6]


def test_what_the_gpu_does_not_decode_is_one_clear_line(tmp_path):
    path = vf.write_video(tmp_path / "clip.mp4")

    def fails(seconds):
        raise RuntimeError("no such profile\nat line 3")

    with pytest.raises(VideoError, match=r"does not decode it \(no such profile\): want --dec"):
        read_by_gpu(path, SamplingSpec(), get_frames_played_at=fails)
    with pytest.raises(VideoError, match=r"h264 is not decoded by this GPU \(10 bit\)"):
        read_by_gpu(path, SamplingSpec(), cpu_fallback="10 bit")
    with pytest.raises(UsageError, match="does not say whether the GPU decodes"):
        stream = stream_source(
            GpuSource(path, open_decoder=lambda _: SimpleNamespace()), SamplingSpec()
        )
        list(stream.frames)


def test_what_the_gpu_is_not_asked_for_is_refused(tmp_path):
    path = vf.write_video(tmp_path / "clip.mp4")
    source = GpuSource(path, open_decoder=StandIn)
    with pytest.raises(UsageError, match="keyframes with --decoder gpu"):
        stream_source(source, SamplingSpec(mode="keyframes"))
    turned = vf.write_video(tmp_path / "turned.mp4")
    vf.set_display_matrix(turned, 0, 1, -1, 0)
    with pytest.raises(UsageError, match="turned or mirrored"):
        GpuSource(turned, open_decoder=StandIn)
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    with pytest.raises(UsageError, match="images with --decoder gpu"):
        open_source(tmp_path / "one.png", decoder="gpu")
    with pytest.raises(UsageError, match="decoder='tpu': want one of cpu, gpu"):
        read_video(path, decoder="tpu")


@pytest.mark.skipif(
    bool(find_spec("torchcodec")) and torch.cuda.is_available(), reason="torchcodec and a GPU"
)
def test_without_torchcodec_or_a_gpu_it_is_one_clear_line(tmp_path):
    path = vf.write_video(tmp_path / "clip.mp4")
    with pytest.raises(UsageError, match=r"--decoder gpu: (torchcodec|no CUDA GPU) .*leave"):
        read_video(path, decoder="gpu")
