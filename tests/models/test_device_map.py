"""Layers on several devices. Without GPUs: accelerate's hooks on the CPU, and "meta" as another."""

import importlib.util

import pytest
import torch
from tiny_models import left_padded, prompt, tiny

import videonsa
from videonsa.errors import ModelError, UsageError
from videonsa.models.cache import VideoNSACache
from videonsa.models.checkpoints.loading import load_model

PARTS = (
    "model.visual",
    "model.language_model.embed_tokens",
    "model.language_model.layers.0",
    "model.language_model.layers.1",
    "model.language_model.norm",
    "model.language_model.rotary_emb",
    "lm_head",
)


def hooked(model):
    """The model with accelerate's hooks, as on several GPUs, all parts on the CPU."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for name in PARTS:
        hook = AlignDevicesHook(execution_device="cpu", skip_keys="past_key_values")
        add_hook_to_module(model.get_submodule(name), hook)
    root = AlignDevicesHook(io_same_device=True, skip_keys="past_key_values")
    return add_hook_to_module(model, root)


@pytest.mark.parametrize("attention", ["nsa", "dense"])
def test_hooks_change_no_bit_of_logits_and_cache(attention):
    arguments = left_padded([prompt(5), prompt(3, seed=1)])
    caches = VideoNSACache(), VideoNSACache()
    with torch.inference_mode():
        plain = tiny(attention=attention)(**arguments, past_key_values=caches[0])
        hooks = hooked(tiny(attention=attention))(**arguments, past_key_values=caches[1])
    assert torch.equal(plain.logits, hooks.logits)
    assert hooks.past_key_values is caches[1]
    assert caches[1].get_seq_length() == caches[0].get_seq_length() > 0


def test_a_step_goes_along_with_everything_that_the_layers_read():
    model, sample = tiny(), left_padded([prompt(5), prompt(3, seed=1)])
    steps = []
    layer = model.model.language_model.layers[0].self_attn
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: steps.append(kwargs["step"]), with_kwargs=True
    )
    with torch.inference_mode():
        model(**sample)
    (step,) = steps
    assert step.to("cpu") is step
    moved = step.to("meta")
    assert step.to("meta") is moved, "layers on one device share one copy"
    layout, tokens = moved.prepared, moved.tokens
    tensors = [tokens.vision_mask, tokens.attention_mask, layout.order]
    for group in (*layout.text, *layout.vision):
        tensors += [x for x in (group.rows.numbers, group.keys.numbers) if x is not None]
    tensors += [group.positions for group in layout.text]
    for group in layout.vision:
        tensors += [group.blocks.offsets, *group.stream[:7]]
    assert all(x.is_meta for x in tensors)
    assert layout.order.shape == step.prepared.order.shape
    assert not step.prepared.order.is_meta


def test_a_later_layer_on_another_device_gets_its_masks_there():
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model = tiny(attention="dense")
    text = model.model.language_model
    for part in (text.layers[1], text.norm, model.lm_head):
        part.to("meta")
        add_hook_to_module(part, AlignDevicesHook("meta", skip_keys="past_key_values"))
    cache = VideoNSACache()
    with torch.inference_mode():
        out = model(**left_padded([prompt(5), prompt(3, seed=1)]), past_key_values=cache)
    assert [layer.keys.device.type for layer in cache.layers] == ["cpu", "meta"]
    assert out.logits.is_meta
    assert out.logits.shape[:2] == (2, cache.get_seq_length())


def test_auto_answers_as_one_device_does(tiny_folder, clip_path):
    shared = videonsa.load(tiny_folder, device_map="auto", dtype="float32")
    plain = videonsa.load(tiny_folder, dtype="float32")
    answers = [qa.ask(clip_path, "What moves?", max_new_tokens=4).text for qa in (shared, plain)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "balanced"}, "want 'auto' or a mapping"),
        ({"device_map": "auto", "device": "cpu"}, "pass one of them"),
        ({"device_map": "auto", "weights": "int8"}, "quantise on one device"),
        ({"device_map": "auto", "weights": "fp8"}, "quantise on one device"),
    ],
)
def test_what_excludes_a_device_map_is_told(tiny_folder, options, message):
    with pytest.raises(UsageError, match=message):
        load_model(tiny_folder, **options)


def test_without_accelerate_one_line_names_the_extra(tiny_folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'videonsa\[multi-gpu\]'"):
        load_model(tiny_folder, device_map="auto")


def test_positions_follow_a_whole_language_model_to_its_device():
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_execution_device_hook

    model, seen = tiny(attention="dense"), []
    for part in (model.model.language_model, model.lm_head):
        part.to("meta")
        add_hook_to_module(part, AlignDevicesHook("meta", skip_keys="past_key_values"))
        attach_execution_device_hook(part, "meta", skip_keys="past_key_values")
    model.model.language_model.rotary_emb.register_forward_pre_hook(
        lambda _, args: seen.append([x.device.type for x in args])
    )
    with torch.inference_mode():
        model(**left_padded([prompt(5), prompt(3, seed=1)]))
    assert seen == [["meta", "meta"]]
