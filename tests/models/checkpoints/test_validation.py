"""Nothing in a config.json is believed: each field is in its domain, or one line names it."""

import copy
import io
import json
import random
import resource
import sys
import time
from math import inf

import pytest
import torch
from safetensors.torch import save_file

from videonsa.errors import ModelError
from videonsa.models.checkpoints.convert import convert
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.checkpoints.validation import checked_fields
from videonsa.models.shape import load_shape, shape_of_config

VALUES = (None, 0, -1, 7, 2**31, 10**9, "x", [], {}, inf, True)
WITHOUT_EFFECT = ("architectures", "transformers_version", "max_window_layers", "sliding_window")
MOST_SECONDS = 5
MOST_BYTES = 2**29


@pytest.fixture(scope="module")
def nested(tiny_folder):
    return json.loads((tiny_folder / "config.json").read_text())


def flattened(nested):
    """The layout of the published configs."""
    kept = {name: value for name, value in nested.items() if name != "text_config"}
    return nested["text_config"] | kept


@pytest.fixture
def folder(tmp_path, tiny_folder):
    """The weights of the tiny model; tests write the config."""
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(tiny_folder / name)
    return tmp_path


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def places(value, before=()):
    """The path to every field, of a config and of the objects and lists in it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inner:
        if key not in WITHOUT_EFFECT:
            yield (*before, key)
        if isinstance(item, dict | list):
            yield from places(item, (*before, key))


def changed(config, place, value):
    config = copy.deepcopy(config)
    part = config
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    return config


def is_taken(config):
    """Whether `checked_fields`, which every reader asks first, has nothing against a config."""
    try:
        checked_fields(json.loads(json.dumps(config)), "config.json")
    except ModelError as error:
        assert "\n" not in str(error)
        return False
    return True


def check_whole(folder):
    """A checkpoint with a config that was taken: its weights do not fit, or it answers."""
    try:
        loaded = load_model(folder)
    except ModelError as error:
        assert "\n" not in str(error)
        with pytest.raises(ModelError, match="config"):
            load_shape(folder)
        return
    logits = loaded.model(input_ids=torch.tensor([[20, 21, 22]])).logits
    assert logits.isfinite().all()
    weights = sum(weight.numel() for weight in loaded.model.parameters())
    assert load_shape(folder).num_parameters == weights


@pytest.mark.parametrize("layout", ["nested", "flat"])
def test_every_field_with_every_nonsense_is_refused_in_one_line_or_harmless(nested, folder, layout):
    config = nested if layout == "nested" else flattened(nested)
    cases = [(place, value) for place in places(config) for value in VALUES]
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    taken = [case for case in cases if is_taken(changed(config, *case))]
    assert time.monotonic() - begun < MOST_SECONDS
    assert 10 < len(taken) < len(cases) / 3
    for case in random.Random(0).sample(taken, 16):
        check_whole(write(folder, changed(config, *case)))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES


def quantised(method, **fields):
    return {"quantization_config": {"quant_method": method, **fields}}


AWQ = quantised("awq", bits=4, group_size=128, version="gemm", zero_point=True)
OF_QUANTISATION = (
    *("quant_method", "bits", "w_bit", "group_size", "q_group_size", "version", "format"),
    *("zero_point", "backend", "modules_to_not_convert", "load_in_4bit"),
)


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_no_nonsense_in_a_quantization_config_is_more_than_a_line(nested, method):
    taken = {
        name
        for name in OF_QUANTISATION
        for value in (*VALUES, "two\nlines", "x" * 1000)
        if is_taken(nested | {"quantization_config": {"quant_method": method, name: value}})
    }
    # What says how AWQ weights are stored may be null; what is not read may be anything.
    assert taken == (set(OF_QUANTISATION) - {"quant_method"} if method == "awq" else set())


REFUSED = [
    ({"vision_config": {"depth": 10**9}}, "vision_config.depth is 1000000000, want a whole number"),
    ({"vision_config": {"depth": 1000}}, "depth is 1000, but the weights have 1 of these layers"),
    ({"vision_config": {"window_size": 0}}, "window_size is 0"),
    ({"vision_config": {"window_size": 27}}, "window_size is 27, want at least .* = 28 pixels"),
    ({"vision_config": {"num_heads": 7}}, "num_heads is 7"),
    ({"vision_config": {"out_hidden_size": 32}}, "out_hidden_size is 32, want .* hidden_size, 64"),
    ({"vision_config": {"in_channels": 4}}, "in_channels is 4"),
    ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers is 1000000000"),
    ({"text_config": {"num_hidden_layers": 7, "layer_types": None}}, "the weights have 2 of these"),
    ({"text_config": {"num_attention_heads": 7}}, "num_attention_heads is 7"),
    ({"text_config": {"num_key_value_heads": 3}}, "num_key_value_heads is 3, want a divisor of 4"),
    ({"text_config": {"head_dim": 8}}, "head_dim is 8, want .* = 16"),
    ({"text_config": {"use_sliding_window": True}}, "use_sliding_window is True"),
    ({"text_config": {"attention_dropout": 0.1}}, "attention_dropout is 0.1"),
    ({"text_config": {"rope_parameters": None}}, r"mrope_section is \[16, 24, 24\], .* sum 8"),
    ({"text_config": {"rope_parameters": {"mrope_section": [4, 4, 2]}}}, "mrope_section"),
    ({"text_config": {"rope_parameters": {"rope_type": "dynamic"}}}, "rope_type is 'dynamic'"),
    ({"text_config": {"rope_parameters": {"rope_type": "yarn"}}}, "factor is None"),
    ({"text_config": []}, r"text_config is \[\], want an object"),
    ({"text_config": {"vocab_size": 7}}, "video_token_id is 7"),
    ({"image_token_id": 7}, "are not different ids"),
    ({"dtype": "int8"}, "dtype is 'int8'"),
    ({"nsa": {"num_selected_blocks": 10**9}}, "nsa.num_selected_blocks=1000000000: want"),
    ({"nsa": []}, r"nsa is \[\]"),
    ({"model_type": "qwen3_vl"}, "model_type='qwen3_vl'.* other families are not read"),
    (AWQ, "states AWQ weights, but none of the tensors is a qweight: remove"),
    ({"text_config": AWQ}, "states AWQ weights, but none of the tensors is a qweight"),
    (quantised("awq", w_bit=3), "bits of AWQ weights is 3, want 4: take a checkpoint of int4 in"),
    (quantised("awq", version="GEMV"), "version of AWQ weights is 'GEMV', want 'gemm'"),
    (quantised("awq", format="marlin"), "version of AWQ weights is 'marlin', want 'gemm'"),
    (quantised("awq", zero_point=False), "zero_point of AWQ weights is False, want true"),
    (quantised("awq", group_size=0), "group_size of AWQ weights is 0, want a whole number"),
    (quantised("awq", backend="llm-awq"), "backend of AWQ weights is 'llm-awq', want another"),
    (quantised("gptq", bits=8), r"quantised \(gptq, 8 bits\).*--weights int8 or int4"),
    (quantised("fp8"), r"quantised \(fp8\).*float weights, which --weights fp8 quantises"),
    (quantised("bitsandbytes", load_in_4bit=True), r"\(bitsandbytes, 4 bits\).*no further package"),
    (quantised("compressed-tensors", format="float-quantized"), r"tensors, float-quantized\)"),
    (quantised(None), r"quantised \(a method it does not name\)"),
    ({"text_config": quantised("gptq")}, r"quantised \(gptq\)"),
    ({"quantization_config": [4]}, r"quantization_config is \[4\]"),
]


def merged(config, changes):
    config = dict(config)
    for name, value in changes.items():
        inner = isinstance(value, dict) and isinstance(config.get(name), dict)
        config[name] = merged(config[name], value) if inner else value
    return config


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_loading_planning_and_converting_refuse_the_same(
    nested, folder, tmp_path, changes, message
):
    write(folder, merged(nested, changes))
    calls = (
        lambda: load_model(folder),
        lambda: load_shape(folder),
        lambda: convert(folder, tmp_path / "target"),
    )
    for call in calls:
        with pytest.raises(ModelError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "target").exists()


HARMLESS = [
    {"auto_map": {"AutoConfig": "code.Own"}},
    {"attn_implementation": "owner/kernel"},
    {"_attn_implementation": "owner/kernel"},
    {"num_labels": 10**9, "id2label": 3},
    {"per_layer_config": {"0": {"hidden_size": 3}}},
    {"generation_config": [1, 2]},
    {"transformers_weights": "../other.safetensors"},
    {"torch_dtype": "auto", "dtype": None},
    {"quantization_config": None},
    {"to_dict": 3, "__class__": "x", "save_pretrained": None},
    {"text_config": {"to_dict": 3, "tie_word_embeddings": True, "num_labels": 10**9}},
]


@pytest.mark.parametrize("changes", HARMLESS)
def test_fields_that_no_model_reads_change_nothing(nested, folder, tiny_folder, changes):
    loaded = load_model(write(folder, merged(nested, changes)))
    ids = torch.tensor([[20, 21, 22]])
    expected = load_model(tiny_folder).model(input_ids=ids).logits
    assert torch.equal(loaded.model(input_ids=ids).logits, expected)
    assert load_shape(folder) == load_shape(tiny_folder)
    assert any("auto_map" in note for note in loaded.notes) == ("auto_map" in changes)


@pytest.mark.parametrize("suffix", ["qweight", "weight_scale_inv", "weight.absmax"])
def test_quantised_weights_are_called_that_by_their_names(nested, tmp_path, suffix):
    name = f"model.layers.0.self_attn.q_proj.{suffix}"
    save_file({name: torch.zeros(2)}, write(tmp_path, nested) / "model.safetensors")
    with pytest.raises(ModelError, match="are quantised"):
        load_shape(tmp_path)


def test_both_layouts_give_the_same_fields(nested):
    flat = checked_fields(flattened(nested), "flat")
    assert flat == checked_fields(nested, "nested")


def test_what_is_checked_is_taken_as_it_is(nested):
    fields = checked_fields(nested, "")
    assert checked_fields(fields, "") == fields
    assert shape_of_config(fields) == shape_of_config(nested)


def test_older_names_mean_the_same(nested):
    rope = nested["text_config"]["rope_parameters"]
    old = merged(nested, {"text_config": {"rope_theta": rope["rope_theta"]}})
    sections = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    old["text_config"] |= {"rope_scaling": sections, "rope_parameters": None}
    old["torch_dtype"] = old.pop("dtype")
    old["vision_config"] = dict(old["vision_config"])
    old["vision_config"]["in_chans"] = old["vision_config"].pop("in_channels")
    assert checked_fields(old, "") == checked_fields(nested, "")


def test_code_that_a_config_names_is_not_run_while_loading(nested, folder, monkeypatch):
    ran = folder / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    kinds = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor")
    write(folder, nested | {"auto_map": dict.fromkeys(kinds, "code.Own")})
    answers = io.StringIO("y\n")
    monkeypatch.setattr(sys, "stdin", answers)
    assert load_model(folder).notes == (
        "config.json names code of the checkpoint (auto_map): it is not run",
    )
    assert answers.tell() == 0
    assert not ran.exists()
