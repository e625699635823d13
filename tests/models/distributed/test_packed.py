from itertools import pairwise

import pytest
import torch
from tiny_models import IMAGE, SPEC, VIDEO, prompt, tiny, video

from videonsa.errors import UsageError
from videonsa.models.cache import VideoNSACache
from videonsa.models.distributed.packed import sample_lengths
from videonsa.models.methods import nsa_method
from videonsa.models.recorder.frames import AttentionRecorder
from videonsa.ops.spec import NSASpec

WAYS = {
    "frame": (SPEC, "nsa"),
    "fixed": (NSASpec(block_size=5, num_selected_blocks=2, window_size=7), "nsa"),
    "dense": (SPEC, "dense"),
}


@pytest.fixture(params=WAYS)
def model(request):
    spec, attention = WAYS[request.param]
    return tiny(spec=spec, attention=attention)


def with_image(seed=7):
    """Text, an image, text, a video, text."""
    generator = torch.Generator().manual_seed(seed)
    ids = [21, 22, *[IMAGE] * 6, 23, *[VIDEO] * 12, 24, 25]
    return {
        "input_ids": torch.tensor([ids]),
        "pixel_values": torch.randn(24, 1176, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
        **video(3, seed=seed),
    }


def samples():
    """Of several lengths, two of one; without vision, with an image, with two sizes of frames."""
    return [
        prompt(3),
        {"input_ids": torch.tensor([[40, 41, 42, 43, 44]])},
        with_image(),
        prompt(3, seed=1),
        prompt(6, 4, 6, seed=2),
        {"input_ids": torch.tensor([[50]])},
    ]


def labels_of(sample):
    """The loss counts on text, the first token of the sample too."""
    ids = sample["input_ids"]
    return ids.masked_fill((ids == VIDEO) | (ids == IMAGE), -100)


def pack(parts):
    packed = {"input_ids": torch.cat([part["input_ids"] for part in parts], dim=1)}
    for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        tensors = [part[name] for part in parts if name in part]
        if tensors:
            packed[name] = torch.cat(tensors)
    packed["video_times"] = [times for part in parts for times in part.get("video_times", [])]
    ends = torch.tensor([0, *(part["input_ids"].shape[1] for part in parts)]).cumsum(0)
    return packed | {"cu_seqlens": ends.int()}


def spans(packed):
    return [slice(*pair) for pair in pairwise(packed["cu_seqlens"])]


def count(sample):
    return int((labels_of(sample)[:, 1:] != -100).sum())


def test_every_sample_of_a_pack_is_as_alone(model):
    packed = pack(samples())
    logits = model(**packed).logits[0]
    for span, sample in zip(spans(packed), samples(), strict=True):
        torch.testing.assert_close(logits[span], model(**sample).logits[0], atol=1e-5, rtol=1e-4)


def test_loss_and_gradients_are_those_of_the_samples_alone(model):
    parts = samples()
    labels = torch.cat([labels_of(part) for part in parts], dim=1)
    loss = model(**pack(parts), labels=labels).loss
    together = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    total = sum(count(part) for part in parts)
    alone = sum(
        model(**part, labels=labels_of(part)).loss * count(part) for part in parts if count(part)
    )
    torch.testing.assert_close(loss, alone / total)
    each = torch.autograd.grad(alone / total, list(model.parameters()), materialize_grads=True)
    assert sum(bool(gradient.any()) for gradient in each) > 30
    torch.testing.assert_close(together, each, atol=1e-6, rtol=1e-4)


def test_labels_of_the_caller_are_left_alone(model):
    packed = pack(samples())
    labels = packed["input_ids"].clone()
    model(**packed, labels=labels)
    assert torch.equal(labels, packed["input_ids"])


@pytest.mark.parametrize("changed", [0, 2, 4])
def test_what_a_sample_holds_moves_no_bit_of_another(model, changed):
    parts = samples()
    before = model(**pack(parts)).logits[0]
    parts[changed]["input_ids"][0, -1] = 99
    parts[changed]["input_ids"][0, 0] = 98
    for name in ("pixel_values", "pixel_values_videos"):
        if name in parts[changed]:
            parts[changed][name] = 5 - 3 * parts[changed][name]
    packed = pack(parts)
    after = model(**packed).logits[0]
    for i, span in enumerate(spans(packed)):
        assert torch.equal(before[span], after[span]) == (i != changed)


def test_times_of_a_sample_move_no_bit_of_another(model):
    parts = samples()
    before = model(**pack(parts)).logits[0]
    parts[2]["video_times"] = [(0.0, 7.0, 20.0)]
    packed = pack(parts)
    after = model(**packed).logits[0]
    for i, span in enumerate(spans(packed)):
        assert torch.equal(before[span], after[span]) == (i != 2)


@pytest.mark.parametrize("inside", [0, 2, 4])
def test_no_gradient_reaches_another_sample(model, inside):
    parts = samples()
    packed = pack(parts)
    pixels = [packed[name].requires_grad_() for name in ("pixel_values", "pixel_values_videos")]
    embeds = model.get_input_embeddings()(packed["input_ids"]).detach().requires_grad_()
    own = spans(packed)[inside]

    logits = model(**packed).logits[0, own]
    image, film = torch.autograd.grad(logits.square().sum(), pixels, materialize_grads=True)
    starts = torch.tensor([0, *(len(part.get("pixel_values_videos", ())) for part in parts)])
    mine = slice(*starts.cumsum(0)[inside : inside + 2])
    assert film[mine].abs().amin(1).gt(0).any()
    film[mine] = 0
    assert not film.any()
    assert bool(image.any()) == (inside == 2)

    given = {name: value for name, value in packed.items() if not name.startswith("pixel")}
    no_vision = {"image_grid_thw": packed["image_grid_thw"]}
    logits = model(**given | no_vision, inputs_embeds=embeds).logits[0, own]
    (gradient,) = torch.autograd.grad(logits.square().sum(), embeds)
    assert gradient[0, own].abs().amax(1).gt(0).all()
    gradient[0, own] = 0
    assert not gradient.any()


def test_the_loss_of_a_pack_predicts_no_first_token(model):
    packed = pack(samples())
    labels = torch.full_like(packed["input_ids"], -100)
    labels[0, packed["cu_seqlens"][1:-1].long()] = 7
    labels[0, 1] = 20
    other = labels.clone()
    other[0, packed["cu_seqlens"][1:-1].long()] = 9
    assert model(**packed, labels=labels).loss == model(**packed, labels=other).loss
    unpacked = {name: value for name, value in packed.items() if name != "cu_seqlens"}
    assert model(**unpacked, labels=labels).loss != model(**unpacked, labels=other).loss


def test_one_sample_is_a_pack_too(model):
    sample = prompt(3)
    torch.testing.assert_close(
        model(**pack([sample])).logits, model(**sample).logits, atol=0, rtol=0
    )


def test_given_positions_are_used(model):
    packed = pack(samples())
    seen = {}
    hook = model.model.language_model.rotary_emb.register_forward_pre_hook(
        lambda _, args: seen.update(position_ids=args[1])
    )
    logits = model(**packed).logits
    hook.remove()
    ids = seen["position_ids"]
    firsts = ids[:, 0, packed["cu_seqlens"][:-1].long()]
    assert not firsts.any()
    assert torch.equal(model(**packed, position_ids=ids).logits, logits)
    assert not torch.equal(model(**packed, position_ids=2 * ids).logits, logits)


def test_no_cache_is_kept(model):
    assert model(**prompt(1)).past_key_values is not None
    assert model(**pack([prompt(1)])).past_key_values is None


def test_gradient_checkpoints_change_nothing(model):
    packed = pack(samples())
    labels = torch.where(packed["input_ids"] > 13, packed["input_ids"], -100)
    model.train()
    plain = torch.autograd.grad(
        model(**packed, labels=labels).loss, list(model.parameters()), materialize_grads=True
    )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = torch.autograd.grad(
        model(**packed, labels=labels).loss, list(model.parameters()), materialize_grads=True
    )
    torch.testing.assert_close(again, plain, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"attention_mask": torch.ones(1, 22)}, "attention_mask"),
        ({"use_cache": True}, "a cache"),
        ({"past_key_values": VideoNSACache()}, "a cache"),
        ({"rows_per_chunk": 4}, "rows_per_chunk"),
        ({"recorder": AttentionRecorder()}, "a recorder"),
        ({"method": nsa_method(NSASpec.released())}, "the released preset"),
    ],
)
def test_what_does_not_go_with_packs_is_refused(beside, named):
    model = tiny()
    with pytest.raises(UsageError, match=f"cu_seqlens with {named}: the rows"):
        model(**pack([prompt(2), prompt(2)]), **beside)


@pytest.mark.parametrize(
    "bounds", [[0, 5], [1, 9], [0, 4, 4, 9], [0, 6, 3, 9], [0], [], [0, 4, 9, 12]]
)
def test_lengths_that_do_not_describe_the_ids_are_refused(bounds):
    with pytest.raises(UsageError, match="want one row of ids"):
        sample_lengths(torch.tensor(bounds, dtype=torch.int32), (1, 9))


def test_lengths_of_several_rows_or_of_another_type_are_refused():
    with pytest.raises(UsageError, match="want one row of ids"):
        sample_lengths(torch.tensor([0, 9], dtype=torch.int32), (2, 9))
    with pytest.raises(UsageError, match="want int32"):
        sample_lengths(torch.tensor([0, 9]), (1, 9))
    with pytest.raises(UsageError, match="want int32"):
        sample_lengths(torch.tensor([[0, 9]], dtype=torch.int32), (1, 9))


def test_a_video_that_crosses_into_the_next_sample_is_refused():
    model = tiny()
    packed = pack([prompt(2), prompt(2)])
    packed["cu_seqlens"][1] -= 6
    with pytest.raises(UsageError, match="vision tokens"):
        model(**packed)
