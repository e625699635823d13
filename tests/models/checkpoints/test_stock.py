"""A dense model as stock Qwen2.5-VL: transformers loads it and computes the same."""

import json

import pytest
import torch
from published_configs import make_tensors, small, write_published
from safetensors.torch import load_file
from tiny_models import IMAGE, START, VIDEO, prompt, tiny
from transformers import AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration

from videonsa.errors import ModelError, UsageError
from videonsa.models.checkpoints.convert import convert
from videonsa.models.checkpoints.loading import load_model


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def pair(request, tmp_path_factory):
    """Our dense model, and what transformers loads of its conversion."""
    folder = tmp_path_factory.mktemp("stock")
    ours = tiny(attention="dense", tie_word_embeddings=request.param)
    ours.save_pretrained(folder / "ours")
    convert(folder / "ours", folder / "stock", to="qwen2_5_vl")
    stock, info = AutoModelForImageTextToText.from_pretrained(
        folder / "stock", output_loading_info=True
    )
    assert type(stock) is Qwen2_5_VLForConditionalGeneration
    assert not any(info.values())  # no weight is missing, unexpected or of another shape
    return ours, stock


@pytest.fixture
def gated(tmp_path):
    tiny().save_pretrained(tmp_path / "gated")
    return tmp_path / "gated"


def stock_logits(stock, inputs, **more):
    stock.model.rope_deltas = None  # which it keeps between calls
    ids = inputs["input_ids"]
    types = 1 * (ids == IMAGE) + 2 * (ids == VIDEO)
    own = {name: value for name, value in inputs.items() if name != "video_times"}
    return stock(**own, mm_token_type_ids=types, **more).logits


def image(height=4, width=8):
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.tensor([[20, START, *[IMAGE] * (height * width // 4), 30, 31]]),
        "pixel_values": torch.randn(height * width, 1176, generator=generator),
        "image_grid_thw": torch.tensor([[1, height, width]]),
    }


@pytest.mark.parametrize(
    "inputs", [{"input_ids": torch.arange(20, 40)[None]}, image()], ids=["text", "image"]
)
def test_text_and_images_give_the_same_logits(pair, inputs):
    ours, stock = pair
    torch.testing.assert_close(
        stock_logits(stock, inputs), ours(**inputs).logits, rtol=0, atol=1e-5
    )


def test_videos_of_whole_seconds_within_the_side_of_a_frame_give_the_same_logits(pair):
    ours, stock = pair
    inputs = prompt(2, 8, 8)  # temporal ids 0 and 2, four tokens along a side
    found = stock_logits(stock, inputs, second_per_grid_ts=torch.tensor([1.0]))
    torch.testing.assert_close(found, ours(**inputs).logits, rtol=0, atol=1e-5)


def test_other_videos_do_so_with_position_ids_of_ours_and_only_then(pair):
    ours, stock = pair
    inputs = prompt(4, 4, 4) | {"video_times": [(0.0, 0.5, 1.0, 1.5)]}
    wanted = ours(**inputs).logits
    seconds = torch.tensor([0.5])
    # Half seconds are one id apart: the video has 0 to 3 from 2 on, the text behind it begins at 6.
    temporal = torch.arange(4).repeat_interleave(4) + 2
    rows, columns = torch.tensor([0, 0, 1, 1]).repeat(4) + 2, torch.tensor([0, 1]).repeat(8) + 2
    before, behind = torch.arange(2).expand(3, 2), torch.arange(6, 10).expand(3, 4)
    ids = torch.cat([before, torch.stack([temporal, rows, columns]), behind], dim=1)[:, None]
    found = stock_logits(stock, inputs, second_per_grid_ts=seconds, position_ids=ids)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    own = stock_logits(stock, inputs, second_per_grid_ts=seconds)
    assert (own - wanted).abs().max() > 1e-4


def test_the_config_is_of_the_stock_class_and_has_no_field_of_ours(tmp_path):
    tiny(attention="dense").save_pretrained(tmp_path / "ours")
    done = convert(tmp_path / "ours", tmp_path / "stock", to="qwen2_5_vl", dtype=torch.bfloat16)
    config = json.loads((tmp_path / "stock/config.json").read_text())
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert (config["model_type"], config["dtype"]) == ("qwen2_5_vl", "bfloat16")
    assert not config.keys() & {"nsa", "attention", "gates", "gate_init", "auto_map"}
    tensors = load_file(tmp_path / "stock/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert "modeling_videonsa.py" not in done.files
    assert load_model(tmp_path / "stock").model.config.attention == "dense"


def test_processor_files_are_completed_and_what_is_missing_is_said(tmp_path):
    tiny(attention="dense").save_pretrained(tmp_path / "ours")
    size = {"shortest_edge": 3136, "longest_edge": 50176}
    stated = {"fps": 4.0, "size": size}
    (tmp_path / "ours/video_preprocessor_config.json").write_text(json.dumps(stated))
    done = convert(tmp_path / "ours", tmp_path / "stock", to="qwen2_5_vl")
    video, picture = (
        json.loads((tmp_path / "stock" / name).read_text())
        for name in ("video_preprocessor_config.json", "preprocessor_config.json")
    )
    assert stated.items() <= video.items()
    assert video["video_processor_type"] == "Qwen2VLVideoProcessor"
    assert picture["image_processor_type"] == "Qwen2VLImageProcessor"
    for settings in (video, picture):
        sizes = [settings[f"{name}_size"] for name in ("patch", "temporal_patch", "merge")]
        assert sizes == [14, 2, 2]
    assert [note.split(":")[0] for note in done.notes[1:3]] == [
        "the source has no tokenizer",
        "the source has no chat template",
    ]
    assert "numbers the positions of a video otherwise" in done.notes[-1]


def test_files_of_a_published_model_stay_as_they_are(tmp_path):
    source = write_published(tmp_path / "source", small("3B"), make_tensors(small("3B")))
    wanted = {"image_processor_type": "Own", "patch_size": 14, "min_pixels": 3136}
    (source / "preprocessor_config.json").write_text(json.dumps(wanted))
    convert(source, tmp_path / "stock", to="qwen2_5_vl")
    found = json.loads((tmp_path / "stock/preprocessor_config.json").read_text())
    assert wanted.items() <= found.items()
    assert (
        load_file(tmp_path / "stock/model.safetensors").keys() == make_tensors(small("3B")).keys()
    )


def test_gates_are_refused_unless_they_are_to_be_dropped(gated, tmp_path):
    target = tmp_path / "stock"
    with pytest.raises(ModelError, match=r"have gates \(8 tensors\).*--drop-gates"):
        convert(gated, target, to="qwen2_5_vl")
    assert not target.exists()
    done = convert(gated, target, to="qwen2_5_vl", drop_gates=True)
    assert done.notes[0] == "8 gate tensors are dropped: attention is dense, and answers change"
    assert "8 gate tensors" in (target / "README.md").read_text()
    stock = AutoModelForImageTextToText.from_pretrained(target)
    dense = load_model(gated, method="dense").model
    text = {"input_ids": torch.arange(20, 40)[None]}
    torch.testing.assert_close(stock_logits(stock, text), dense(**text).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"to": "llava"}, UsageError, "to='llava': want 'videonsa' or 'qwen2_5_vl'"),
        ({"drop_gates": True}, UsageError, "drop_gates without to='qwen2_5_vl'"),
        ({"to": "qwen2_5_vl", "fresh_gates": "half"}, UsageError, "has no gates; leave one"),
    ],
)
def test_options_that_exclude_each_other_are_refused(gated, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        convert(gated, tmp_path / "target", **options)
    assert not (tmp_path / "target").exists()


def test_gates_that_are_not_there_are_not_dropped(tmp_path):
    tiny(attention="dense").save_pretrained(tmp_path / "dense")
    with pytest.raises(ModelError, match="have no gates: leave out drop_gates"):
        convert(tmp_path / "dense", tmp_path / "stock", to="qwen2_5_vl", drop_gates=True)
