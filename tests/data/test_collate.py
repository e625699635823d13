"""A packed batch on its way from a worker."""

import pickle

import torch

from videonsa.data.collate import PackedBatch
from videonsa.ops.drawing import draw_frames
from videonsa.rendered.suite import SuiteSpec, drawing_of, make_script, suite_seed
from videonsa.video.processing import patchify
from videonsa.video.sampling import SamplingSpec


def batch_of(videos, images):
    return PackedBatch(
        samples=(3, 1),
        ids=("a", "b"),
        input_ids=torch.arange(6)[None],
        labels=torch.arange(6)[None],
        cu_seqlens=torch.tensor([0, 2, 6], dtype=torch.int32),
        videos=videos,
        video_times=tuple((0.0,) for _ in videos),
        images=images,
        sampling=SamplingSpec(),
    )


def frames(*shape):
    return torch.randint(256, shape, dtype=torch.uint8)


def test_frames_travel_as_one_tensor_and_are_the_same():
    videos, images = (frames(4, 3, 28, 56), frames(2, 3, 56, 28)), (frames(1, 3, 28, 28),)
    batch = batch_of(videos, images)
    found = pickle.loads(pickle.dumps(batch))
    for name, clips in (("videos", videos), ("images", images)):
        assert all(map(torch.equal, getattr(found, name), clips))
    memories = {x.untyped_storage().data_ptr() for x in (*found.videos, *found.images)}
    assert len(memories) == 1
    assert (found.samples, found.ids, found.video_times) == ((3, 1), ("a", "b"), ((0.0,), (0.0,)))
    assert torch.equal(found.cu_seqlens, batch.cu_seqlens) and found.sampling == batch.sampling


def test_a_drawing_travels_and_gives_the_inputs_of_its_frames():
    spec = SuiteSpec(num_frames=32, kinds=("needle",))
    seeds = [suite_seed("test", index) for index in range(3)]
    drawings = [drawing_of(make_script(seed, spec=spec), 0, 5 + seed % 2) for seed in seeds]
    stills, images = (frames(5, 3, 112, 112),), (frames(1, 3, 28, 28),)
    drawn = batch_of((*drawings, *stills), images)
    sent = pickle.dumps(drawn)
    assert len(sent) < 500_000 * len(drawings), "noise and stamps, no frames"
    found = pickle.loads(sent)
    assert [video.shape for video in found.videos] == [video.shape for video in drawn.videos]
    wanted = batch_of((*map(draw_frames, drawings), *stills), images).model_inputs()
    for inputs in (found.model_inputs(), drawn.model_inputs()):
        assert inputs.keys() == wanted.keys()
        assert all(torch.equal(x, inputs[k]) for k, x in wanted.items() if torch.is_tensor(x))


def test_a_batch_of_text_travels_too():
    found = pickle.loads(pickle.dumps(batch_of((), ())))
    assert found.videos == found.images == () and found.num_tokens == 6


def test_clips_cut_together_give_the_patches_of_each():
    small, wide = (3, 28, 28), (3, 28, 56)
    shapes = [(4, *small), (4, *small), (3, *small), (3, *small), (2, *wide), (4, *small)]
    videos, images = (
        tuple(frames(*shape) for shape in shapes),
        tuple(frames(1, *small) for _ in "ab"),
    )
    inputs = batch_of(videos, images).model_inputs(dtype=torch.float64)
    for clips, pixels, grids in (
        (videos, "pixel_values_videos", "video_grid_thw"),
        (images, "pixel_values", "image_grid_thw"),
    ):
        each = [patchify(clip) for clip in clips]
        assert torch.equal(inputs[pixels], torch.cat([one.pixels for one in each]).double())
        assert inputs[grids].tolist() == [list(one.grid) for one in each]
