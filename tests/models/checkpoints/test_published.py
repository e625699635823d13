"""Checkpoints as they are published: configs, names, shapes, files."""

import json

import pytest
import torch
from published_configs import (
    SIZES,
    STYLES,
    flat,
    make_tensors,
    parameter_names,
    small,
    styled,
    tensor_shapes,
    write_published,
)

from videonsa.errors import ModelError
from videonsa.models import config as config_module
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.checkpoints.stored import name_on_disk, parameter_name
from videonsa.models.config import VideoNSAConfig
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.ops.spec import NSASpec

RELEASED_FIELDS = {"block_counts": 32, "window_size": 256}


def parse(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return VideoNSAConfig.from_pretrained(tmp_path)


def released_config():
    """As the released code writes it: transformers 4.5x with two fields of its own."""
    config = styled(small("7B"), "transformers 4")
    config["text_config"] |= RELEASED_FIELDS
    return config | {"architectures": ["VideoNSAForConditionalGeneration"]}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", SIZES)
def test_published_config_gives_exactly_the_published_tensors(tmp_path, name, style):
    config = parse(tmp_path, styled(flat(name), style) | {"attention": "dense"})
    with torch.device("meta"):
        model = VideoNSAForConditionalGeneration(config)
    expected = tensor_shapes(flat(name))
    if SIZES[name].tied:
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    found = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert found == {parameter_name(key): shape for key, shape in expected.items()}
    assert model.num_parameters() == SIZES[name].parameters
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == SIZES[name].tied


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", SIZES)
def test_published_config_keeps_the_values_that_no_shape_shows(tmp_path, name, style):
    config = parse(tmp_path, styled(flat(name), style))
    text, vision = config.text_config, config.vision_config
    assert text.rope_parameters["mrope_section"] == [16, 24, 24]
    assert text.rope_parameters["rope_theta"] == 1e6
    assert (text.rms_norm_eps, text.max_position_embeddings) == (1e-6, 128_000)
    assert (text.sliding_window, text.attention_dropout) == (None, 0.0)
    assert set(text.layer_types) == {"full_attention"}
    assert (vision.window_size, vision.tokens_per_second) == (112, 2)
    assert list(vision.fullatt_block_indexes) == [7, 15, 23, 31]
    assert (vision.num_heads, vision.patch_size, vision.spatial_merge_size) == (16, 14, 2)
    assert (config.image_token_id, config.video_token_id) == (151655, 151656)
    assert (text.eos_token_id, config.dtype) == (151645, torch.bfloat16)


@pytest.mark.parametrize("name", SIZES)
def test_names_survive_both_layouts(name):
    for key in tensor_shapes(flat(name), gates=True):
        parameter = parameter_name(key)
        assert name_on_disk(parameter, "hub") == key
        assert name_on_disk(parameter, "transformers") == parameter == parameter_name(parameter)


@pytest.mark.parametrize("layout", ["hub", "transformers"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", SIZES)
def test_sharded_checkpoints_load_bit_by_bit(tmp_path, name, style, layout):
    published = make_tensors(small(name))
    tensors = published if layout == "hub" else parameter_names(published)
    write_published(tmp_path, styled(small(name), style), tensors)
    loaded = load_model(tmp_path)
    assert loaded.notes == ("these weights have no gates: attention is dense",)
    found = loaded.model.state_dict()
    for key, tensor in parameter_names(published).items():
        assert torch.equal(found[key], tensor), key
    head, embedding = loaded.model.lm_head.weight, loaded.model.get_input_embeddings().weight
    assert (head is embedding) == SIZES[name].tied


@pytest.mark.parametrize("layout", ["hub", "transformers"])
def test_released_videonsa_runs_with_its_preset_and_says_so(tmp_path, layout):
    tensors = make_tensors(small("7B"), gates=True)
    named = tensors if layout == "hub" else parameter_names(tensors)
    loaded = load_model(write_published(tmp_path, released_config(), named, num_shards=4))
    assert loaded.model.config.nsa_spec == NSASpec.released()
    assert len(loaded.notes) == 1
    assert "preset 'released'" in loaded.notes[0]
    found = loaded.model.state_dict()
    for key, tensor in parameter_names(tensors).items():
        assert torch.equal(found[key], tensor), key


def test_released_config_may_state_other_blocks_and_window(tmp_path):
    config = released_config()
    config["text_config"] |= {"block_counts": 16, "window_size": 128}
    write_published(tmp_path, config, make_tensors(small("7B"), gates=True))
    spec = load_model(tmp_path).model.config.nsa_spec
    assert spec == NSASpec.released(num_selected_blocks=16, window_size=128)


def test_from_pretrained_chooses_by_the_weights_too(tmp_path):
    plain = write_published(tmp_path / "plain", small("7B"), make_tensors(small("7B")))
    gated = make_tensors(small("7B"), gates=True)
    released = write_published(tmp_path / "released", released_config(), gated)
    read = VideoNSAForConditionalGeneration.from_pretrained
    assert read(plain).config.attention == "dense"
    assert read(released).config.nsa_spec == NSASpec.released()
    assert read(released, nsa=NSASpec()).config.nsa_spec == NSASpec()
    with pytest.raises(ModelError, match="attention='sparse'"):
        read(plain, attention="sparse")
    fresh = read(plain, attention="nsa", fresh_gates=True)
    assert (fresh.config.attention, fresh.config.nsa_spec) == ("nsa", NSASpec())
    assert not fresh.model.language_model.layers[1].self_attn.g_proj_2.weight.any()


def test_config_of_the_hub_is_chosen_by_the_names_in_the_index(tmp_path, monkeypatch):
    gated = make_tensors(small("7B"), gates=True)
    folder = write_published(tmp_path, released_config(), gated)
    fetched = []

    def fetch(name, *, allow_patterns, revision, **_):
        fetched.append((name, allow_patterns, revision))
        return str(folder)

    monkeypatch.setattr(config_module, "snapshot_download", fetch)
    monkeypatch.setattr(
        config_module.Qwen2_5_VLConfig,
        "get_config_dict",
        classmethod(lambda cls, name, **kwargs: (released_config(), {})),
    )
    config = VideoNSAConfig.from_pretrained("owner/name", revision="main")
    assert config.nsa_spec == NSASpec.released()
    assert fetched == [("owner/name", ["model.safetensors.index.json"], "main")]


def test_config_without_weights_beside_it_is_ours_as_it_stands(tmp_path):
    config = parse(tmp_path, flat("7B"))
    assert (config.attention, config.nsa_spec) == ("nsa", NSASpec())
