"""The parts of reading that `bench prefill` measures; its test runs them all."""

import av
import pytest

from videonsa.bench import sample_video
from videonsa.bench.video_reading import ReadingRequest, in_turn
from videonsa.errors import UsageError
from videonsa.models.shape import VisionShape


def test_calls_run_in_turn():
    order = []
    calls = {key: lambda key=key: order.append(key) for key in (1, 8)}
    times = in_turn(calls, repeats=3)
    assert order == [1, 8] * 3
    assert {key: len(runs) for key, runs in times.items()} == {1: 3, 8: 3}


def test_every_frame_at_the_rate_is_wanted_at_the_size_asked_for(tmp_path):
    request = ReadingRequest(video=tmp_path, fps=2.0, workers=4, max_pixels=784)
    spec = request.sampling(VisionShape(out_hidden_size=8))
    assert (spec.fps, spec.max_pixels, spec.max_frames > 10**6) == (2.0, 784, True)


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"fps": 0.0}, {"max_pixels": 5}])
def test_requests_outside_their_domain_are_refused(tmp_path, wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        ReadingRequest(**{"video": tmp_path, "workers": 2, "max_pixels": 784, **wrong})


def test_the_sample_is_rendered_once_and_its_minutes_follow_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_video.tempfile, "tempdir", str(tmp_path))
    for name, value in {"WIDTH": 320, "HEIGHT": 240, "FPS": 2}.items():
        monkeypatch.setattr(sample_video, name, value)
    path = sample_video.sample_video(minutes=2)
    assert path.parent == tmp_path
    assert list(tmp_path.iterdir()) == [path]
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([index / 2 for index in range(240)])
    before = path.stat().st_mtime_ns
    assert sample_video.sample_video(minutes=2) == path
    assert path.stat().st_mtime_ns == before
