import pytest
import torch
from tiny_models import EOS, IMAGE, PAD, SPEC, VIDEO, left_padded, prompt, qwen, tiny, video
from transformers import AutoConfig, AutoModelForImageTextToText, DynamicCache

from videonsa.errors import UsageError
from videonsa.models.config import VideoNSAConfig
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.methods import NSA
from videonsa.ops.spec import NSASpec

SPECS = {
    "frame": SPEC,
    "fixed": NSASpec(block_size=5, num_selected_blocks=2, window_size=7),
}


@pytest.fixture(params=SPECS)
def model(request):
    return tiny(spec=SPECS[request.param])


def image_and_video():
    """One sample: text, an image, text, a video, text."""
    ids = [20, *[IMAGE] * 6, 21, 22, *[VIDEO] * 12, 23, 24]
    return {
        "input_ids": torch.tensor([ids]),
        "pixel_values": torch.randn(24, 1176, generator=torch.Generator().manual_seed(5)),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
        **video(3),
    }


@pytest.fixture(scope="module")
def pair():
    """Transformers' Qwen2.5-VL and ours with dense attention, of the same weights."""
    reference, model = qwen(), tiny(attention="dense")
    model.load_state_dict(reference.state_dict())
    return reference, model


class TestDense:
    def test_logits_equal_transformers_with_left_padding(self, pair):
        reference, model = pair
        batch = left_padded([prompt(3), prompt(5, seed=1), prompt(1, seed=2)])
        real = batch["attention_mask"].bool()
        ours = model(**batch)
        ids = positions_of(model, batch)
        times = batch.pop("video_times")
        theirs = reference(**batch, position_ids=ids).logits
        assert len(times) == 3
        torch.testing.assert_close(ours.logits[real], theirs[real], atol=1e-4, rtol=0)

    def test_logits_equal_transformers_for_image_video_and_text(self, pair):
        reference, model = pair
        inputs = image_and_video()
        ours = model(**inputs).logits
        ids = positions_of(model, inputs)
        inputs.pop("video_times")
        theirs = reference(**inputs, position_ids=ids).logits
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)

    def test_loss_and_gradients_equal_transformers(self, pair):
        reference, model = pair
        inputs = prompt(3)
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == VIDEO, -100)
        ids = positions_of(model, inputs)
        ours = model(**inputs, labels=labels).loss
        inputs.pop("video_times")
        theirs = reference(**inputs, position_ids=ids, labels=labels).loss
        torch.testing.assert_close(ours, theirs)
        for name in ("q_proj", "k_proj"):
            gradients = []
            for one, loss in ((model, ours), (reference, theirs)):
                weight = getattr(one.model.language_model.layers[0].self_attn, name).weight
                gradients.append(torch.autograd.grad(loss, weight, retain_graph=True)[0])
            torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)

    def test_nsa_is_refused_without_gates(self, pair):
        with pytest.raises(UsageError, match="model without gates"):
            pair[1](**prompt(2), method="nsa")


def positions_of(model, inputs):
    """Position ids that the model gives these rows, seen from outside."""
    seen = {}
    hook = model.model.language_model.rotary_emb.register_forward_pre_hook(
        lambda _, args: seen.update(position_ids=args[1])
    )
    model(**inputs)
    hook.remove()
    return seen["position_ids"]


def test_given_positions_are_used(model):
    inputs = prompt(3)
    ids = positions_of(model, inputs)
    torch.testing.assert_close(
        model(**inputs, position_ids=ids).logits, model(**inputs).logits, atol=0, rtol=0
    )
    moved = model(**inputs, position_ids=2 * ids)
    assert not torch.allclose(moved.logits, model(**inputs).logits, atol=1e-4)
    assert moved.past_key_values.next_position == [2 * int(ids.max()) + 1]


def test_padded_batch_equals_each_sample_alone(model):
    samples = [prompt(3), prompt(6, 4, 6, seed=1), prompt(1, seed=2)]
    batch = left_padded(samples)
    together = model(**batch).logits
    for row, sample in zip(together, samples, strict=True):
        length = sample["input_ids"].shape[1]
        alone = model(**sample).logits[0]
        torch.testing.assert_close(row[-length:], alone, atol=1e-5, rtol=1e-4)


def test_right_padding_changes_nothing_either(model):
    sample = prompt(3)
    ids = torch.nn.functional.pad(sample["input_ids"], (0, 4), value=PAD)
    mask = (torch.arange(ids.shape[1]) < ids.shape[1] - 4).long()[None]
    padded = model(**sample | {"input_ids": ids}, attention_mask=mask).logits[:, :-4]
    torch.testing.assert_close(padded, model(**sample).logits, atol=1e-5, rtol=1e-4)


def test_vision_token_in_padding_is_padding():
    model, sample = tiny(), prompt(2)
    ids = torch.cat([torch.tensor([[VIDEO, VIDEO]]), sample["input_ids"]], dim=1)
    mask = (torch.arange(ids.shape[1]) >= 2).long()[None]
    padded = model(**sample | {"input_ids": ids}, attention_mask=mask).logits[:, 2:]
    torch.testing.assert_close(padded, model(**sample).logits, atol=1e-5, rtol=1e-4)


def test_nsa_equals_dense_on_text_alone(model):
    ids = torch.tensor([[20, 21, 22, 23]])
    torch.testing.assert_close(
        model(input_ids=ids).logits, model(input_ids=ids, method="dense").logits
    )


def test_nsa_differs_from_dense_on_video(model):
    inputs = prompt(6)
    gap = model(**inputs).logits - model(**inputs, method="dense").logits
    assert gap.abs().max() > 1e-3


def test_without_branches_vision_rows_attend_to_nothing():
    """With no branch a video row's attention is 0, so two layers give it its own features only."""
    model = tiny()
    inputs = prompt(4)
    spec = SPEC.with_options(branches=())
    seen = []
    attention = model.model.language_model.layers[0].self_attn
    hook = attention.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(**inputs, method=NSA(spec))
    hook.remove()
    vision = inputs["input_ids"] == VIDEO
    assert torch.all(seen[0][vision] == 0)
    assert seen[0][~vision].abs().min() > 0


@pytest.mark.parametrize("branch", ["compressed", "selected", "window"])
def test_every_branch_matters(branch):
    model, inputs = tiny(), prompt(8)
    others = tuple(name for name in SPEC.branches if name != branch)
    without = model(**inputs, method=NSA(SPEC.with_options(branches=others))).logits
    assert (without - model(**inputs).logits).abs().max() > 1e-4


def test_save_and_load_give_the_same_bits(tmp_path, model):
    model.save_pretrained(tmp_path)
    read, info = VideoNSAForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"]
    for (name, ours), (other, theirs) in zip(
        model.state_dict().items(), read.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs), name
    assert read.config.nsa_spec == model.config.nsa_spec
    assert torch.equal(read.eval()(**prompt(3)).logits, model(**prompt(3)).logits)


def test_auto_classes_know_the_model(tmp_path, model):
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), VideoNSAConfig)
    read = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(read, VideoNSAForConditionalGeneration)
    assert torch.equal(read(**prompt(3)).logits, model(**prompt(3)).logits)


@pytest.mark.parametrize("attention", ["nsa", "dense"])
def test_float32_weights_train_under_autocast(attention):
    model, inputs = tiny(), prompt(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = model(**inputs, labels=inputs["input_ids"], method=attention)
    exact = model(**inputs, labels=inputs["input_ids"], method=attention)
    torch.testing.assert_close(result.loss, exact.loss, rtol=2e-2, atol=0)
    result.loss.backward()
    grads = [p.grad for p in model.model.language_model.layers[0].self_attn.q_proj.parameters()]
    assert all(grad.dtype == torch.float32 and grad.any() for grad in grads)


def test_bfloat16_is_close_to_float32():
    # Seed 0 has a near tie, and rounding selects another block.
    model, inputs = tiny(1), prompt(6)
    exact = model(**inputs).logits
    rough = model.to(torch.bfloat16)(**inputs).logits
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_gradient_checkpointing_changes_no_gradient():
    inputs = prompt(4)
    gradients = []
    for checkpointing in (False, True):
        model = tiny().train()
        if checkpointing:  # renamed in transformers 5.23
            names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
            next(getattr(model, name) for name in names if hasattr(model, name))()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append(model.model.language_model.layers[0].self_attn.k_proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_all_hidden_states_tuple_and_last_logits():
    model, inputs = tiny(), prompt(2)
    full = model(**inputs, output_hidden_states=True)
    assert len(full.hidden_states) == 3
    last = model(**inputs, logits_to_keep=1, return_dict=False)
    torch.testing.assert_close(last[0], full.logits[:, -1:])


def test_training_returns_no_cache_unless_asked():
    model, inputs = tiny().train(), prompt(2)
    assert model(**inputs).past_key_values is None
    assert model(**inputs, use_cache=True).past_key_values is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_times": None}, "1 videos without times"),
        ({"second_per_grid_ts": [1.0]}, "both given"),
        ({"video_times": None, "second_per_grid_ts": [1.0, 1.0]}, "times of 2 videos but 1"),
        ({"method": "sparse"}, "method='sparse': want one of"),
        ({"video_times": []}, "times of 0 videos but 1 video grids"),
        ({"video_grid_thw": None, "video_times": None}, "8 vision tokens of the prompt have no"),
        ({"pixel_values_videos": None}, "videos with no pixels and 1 grids"),
        ({"pixel_values": torch.zeros(4, 1176)}, "images with their pixels and 0 grids"),
        ({"pixel_values_videos": torch.zeros(9, 1176)}, "9 patches of pixels"),
        ({"input_ids": torch.tensor([[20, 21]])}, "1 images or videos have no tokens"),
        ({"input_ids": None}, "input_ids is missing"),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask is \[1, 3\]: want \[1, 14\]"),
        ({"position_ids": torch.ones(1, 14)}, r"position_ids is \[1, 14\]"),
        ({"past_key_values": DynamicCache()}, "want a VideoNSACache"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        tiny()(**prompt(2) | change)


def test_inner_parts_refuse_to_run_alone():
    with pytest.raises(UsageError, match="call the whole model"):
        tiny().model(input_ids=torch.tensor([[EOS]]))


def test_period_in_place_of_times_gives_the_same():
    model, inputs = tiny(), prompt(4)
    times = inputs.pop("video_times")
    by_period = model(**inputs, second_per_grid_ts=torch.tensor([1.0])).logits
    assert torch.equal(by_period, model(**inputs, video_times=times).logits)
