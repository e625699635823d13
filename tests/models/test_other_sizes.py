"""G = 8 as in the 3B model, and sizes that are multiples of nothing: the same equalities."""

import pytest
import torch
from tiny_models import config_fields, left_padded, prompt
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from videonsa.models.cache import VideoNSACache
from videonsa.models.config import VideoNSAConfig
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.ops.spec import NSASpec

SIZES = {
    "G = 8": {
        "hidden_size": 128,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [1, 1, 2],
        },
    },
    "odd": {
        "hidden_size": 154,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "num_hidden_layers": 3,
        "intermediate_size": 37,
        "vocab_size": 131,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [3, 5, 3],
        },
    },
}
SPECS = {
    "frames": NSASpec(block_size="frame", num_selected_blocks=3, window_size=5),
    "blocks": NSASpec(block_size=7, num_selected_blocks=2, window_size=9, num_init_blocks=1),
}


def fields_of(size):
    fields = config_fields(**SIZES[size])
    odd = {"hidden_size": 36, "num_heads": 3, "intermediate_size": 53} if size == "odd" else {}
    fields["vision_config"] |= odd
    return fields


def ours(size, attention="nsa", spec=SPECS["frames"]):
    torch.manual_seed(0)
    config = VideoNSAConfig(nsa=spec, attention=attention, **fields_of(size))
    model = VideoNSAForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if "g_proj_2" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def samples():
    """Of different lengths and frames, none a multiple of a block."""
    return [prompt(6), prompt(2, 6, 10, seed=1), prompt(3, 4, 6, seed=2)]


@pytest.fixture(params=[(size, spec) for size in SIZES for spec in SPECS], ids=" ".join)
def model(request):
    size, spec = request.param
    return ours(size, spec=SPECS[spec])


@pytest.mark.parametrize("rows", [1, 5, 11, 23])
def test_chunks_give_what_one_go_gives(model, rows):
    for sample in samples():
        with torch.no_grad():
            whole = model(**sample, rows_per_chunk=0).logits
            cut = model(**sample, rows_per_chunk=rows).logits
        torch.testing.assert_close(cut, whole, atol=2e-5, rtol=1e-4)


def test_a_batch_of_different_lengths_is_each_alone(model):
    batch = left_padded(samples())
    with torch.no_grad():
        together = model(**batch).logits
        for i, sample in enumerate(samples()):
            alone = model(**sample).logits[0]
            torch.testing.assert_close(together[i, -len(alone) :], alone, atol=2e-5, rtol=1e-4)


def test_decoding_gives_what_one_go_gives(model):
    sample = prompt(5)
    ids = sample.pop("input_ids")
    cache = VideoNSACache()
    with torch.no_grad():
        whole = model(input_ids=ids, **sample).logits
        first = model(input_ids=ids[:, :-2], **sample, past_key_values=cache).logits
        rest = [
            model(input_ids=ids[:, i : i + 1], past_key_values=cache).logits
            for i in range(ids.shape[1] - 2, ids.shape[1])
        ]
    torch.testing.assert_close(torch.cat([first, *rest], dim=1), whole, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_dense_equals_transformers(size):
    torch.manual_seed(0)
    reference = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**fields_of(size))).eval()
    model = ours(size, attention="dense")
    model.load_state_dict(reference.state_dict())
    positions = []
    model.model.language_model.rotary_emb.register_forward_pre_hook(
        lambda _, args: positions.append(args[1])
    )
    for sample in samples():
        with torch.no_grad():
            logits = model(**sample).logits
            sample.pop("video_times")
            theirs = reference(**sample, position_ids=positions[-1]).logits
        torch.testing.assert_close(logits, theirs, atol=1e-4, rtol=0)
