"""Weights of 8 bits: near the full ones, where they should be, as large as predicted."""

import sys
from dataclasses import replace

import peft
import pytest
import torch
from tiny_models import prompt, tiny

import videonsa
from videonsa.errors import ModelError, UsageError
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.checkpoints.quantised import QUANTISED, check_weights, quantise
from videonsa.models.fp8 import Fp8Linear
from videonsa.models.shape import published_shape, shape_of_config

CPU = torch.device("cpu")


def stored_bytes(model):
    """Of all weights, a quantised one by the tensors it is made of."""
    total = 0
    for weight in model.parameters():
        parts = [getattr(weight, name) for name in getattr(weight, "tensor_data_names", ())]
        total += sum(part.nbytes for part in parts or [weight])
    return total


# A weight of int8 is off by less than 1 / 254 of the largest of its row of 64, one of fp8 by 1 / 16
# of itself, as are the rows that it multiplies.
@pytest.mark.parametrize(("weights", "most"), [("int8", 0.03), ("fp8", 0.1)])
@pytest.mark.parametrize("attention", ["nsa", "dense"])
def test_logits_of_8_bits_stay_near_those_of_full_weights(attention, weights, most):
    model, arguments = tiny(attention=attention), prompt(5)
    with torch.inference_mode():
        full = model(**arguments).logits
        quantise(model, weights, CPU)
        quantised = model(**arguments).logits
    assert not torch.equal(full, quantised)
    assert (full - quantised).abs().max() < most * full.abs().max()


def test_only_projections_and_mlps_of_the_layers_are_quantised():
    model = tiny()
    quantise(model, "int8", CPU)
    changed = {
        name
        for name, weight in model.named_parameters()
        if type(weight.data) is not torch.Tensor and type(weight) is not torch.nn.Parameter
    }
    wanted = {
        f"{name}.weight"
        for name, module in model.model.language_model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in QUANTISED
    }
    assert changed == {f"model.language_model.{name}" for name in wanted}
    assert len(wanted) == 2 * 7


def test_in_fp8_the_blocks_of_the_tower_are_quantised_too():
    model = tiny()
    quantise(model, "fp8", CPU)
    found = {n for n, module in model.named_modules() if isinstance(module, Fp8Linear)}
    linears = {n for n, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert len(found) == 2 * 7 + 2 * 5
    assert not {n for n in linears if "visual.blocks" in n}
    assert {n.rpartition(".")[2] for n in linears if "layers" in n} == {"g_proj_1", "g_proj_2"}
    assert any("merger" in n for n in linears)
    assert any("lm_head" in n for n in linears)


@pytest.mark.parametrize("weights", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_plan_knows_how_large_they_are(dtype, weights):
    model = tiny().to(dtype)
    shape = shape_of_config(model.config.to_dict() | {"dtype": str(dtype)})
    assert shape.weight_bytes == stored_bytes(model)
    quantise(model, weights, CPU)
    assert replace(shape, weights=weights).weight_bytes == stored_bytes(model)


def test_4_bits_take_less_than_8_in_the_plan():
    shape = published_shape("Qwen/Qwen2.5-VL-7B-Instruct")
    sizes = [replace(shape, weights=kind).weight_bytes for kind in ("full", "int8", "int4")]
    # 28 layers of 233 M weights at 2, 1 and about 0.55 bytes; 1.77 G parameters beside them.
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[1] == pytest.approx(6.525e9, rel=0.005)
    assert 0.5 * 6.525e9 < sizes[2] - (sizes[0] - 2 * 6.525e9) < 0.6 * 6.525e9


def test_fp8_takes_a_byte_a_weight_of_layers_and_tower_in_the_plan():
    shape = published_shape("Qwen/Qwen2.5-VL-7B-Instruct")
    full, fp8, int8 = (replace(shape, weights=k).weight_bytes for k in ("full", "fp8", "int8"))
    # 32 blocks of 19.7 M weights beside the layers; each padded to 3,456 in its MLP.
    assert int8 - fp8 == pytest.approx(32 * 19.5e6, rel=0.01)
    assert full - fp8 == pytest.approx(7.15e9, rel=0.01)


def test_a_loaded_model_answers_and_says_so(tiny_folder, clip_path):
    qa = videonsa.load(tiny_folder, device="cpu", weights="int8")
    answer = qa.ask(clip_path, "What moves?", max_new_tokens=2)
    assert any("in 8 bits" in note for note in answer.usage.notes)
    assert qa.shape.weight_bytes == stored_bytes(qa.model)


def test_without_torchao_one_line_names_the_extra(tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ModelError, match=r"pip install 'videonsa\[quant\]'"):
        load_model(tiny_folder, weights="int8")


def test_what_cannot_be_had_is_refused_before_loading(tmp_path):
    with pytest.raises(UsageError, match="need an NVIDIA GPU"):
        load_model(tmp_path, weights="int4")
    with pytest.raises(UsageError, match="fp8' on cpu: products of float8 need an NVIDIA GPU of "):
        load_model(tmp_path, weights="fp8")
    with pytest.raises(UsageError, match="want one of full, fp8, int8, int4"):
        check_weights("int2", CPU)


def test_fp8_is_refused_on_a_gpu_that_is_too_old(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    with pytest.raises(UsageError, match=r"capability 8\.6: .* 8\.9 or more .*; use int8"):
        check_weights("fp8", torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    check_weights("fp8", torch.device("cuda:0"))


def test_a_model_in_fp8_trains_nothing():
    model = tiny()
    quantise(model, "fp8", CPU)
    with pytest.raises(UsageError, match="train the model with weights='full'"):
        model(**prompt(5))


def test_an_adapter_is_not_put_on_weights_in_fp8():
    model = tiny()
    quantise(model, "fp8", CPU)
    with pytest.raises(ValueError, match=r"Fp8Linear.* is not supported"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["nsa", "dense"])
def test_a_model_in_fp8_answers_on_a_gpu(tiny_folder, clip_path, attention):
    qa = videonsa.load(tiny_folder, device="cuda", weights="fp8", method=attention)
    answer = qa.ask(clip_path, "What moves?", max_new_tokens=2)
    assert any("float8" in note for note in answer.usage.notes)
    assert qa.shape.weight_bytes == stored_bytes(qa.model)
