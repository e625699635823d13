"""AWQ checkpoints of int4: read value by value as by hand, and run wherever float weights do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from awq_checkpoints import by_hand, packed, quantised, stated, write_awq
from peft import LoraConfig, get_peft_model
from published_configs import make_tensors, small, write_published
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

import videonsa
from videonsa.errors import BudgetError, ModelError
from videonsa.models.checkpoints import awq
from videonsa.models.checkpoints.awq import read_tensor, unpack, with_weights
from videonsa.models.checkpoints.convert import convert
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.checkpoints.quantization_config import AwqFormat
from videonsa.models.checkpoints.stored import read_header
from videonsa.models.locate import EMBEDDED, locate_model
from videonsa.models.shape import load_shape
from videonsa.planning.plan import plan_video

GROUP = 64
DEQUANTISED = "int4 weights (AWQ) are dequantised to {} when loaded: no memory is saved"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """The embedded model as AWQ."""
    place = tmp_path_factory.mktemp("awq") / "embedded"
    return write_awq(place, Path(locate_model(EMBEDDED)), group=GROUP)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The layout of Qwen/Qwen2.5-VL-7B-Instruct-AWQ, small: flat config, names of the hub."""
    place = tmp_path_factory.mktemp("awq")
    write_published(place / "floats", small("7B"), make_tensors(small("7B")))
    return write_awq(place / "awq", place / "floats", group=16)


def stored_tensors(folder):
    """All tensors of a folder by their names on disk."""
    return {
        name: tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def parts_of(tensors, module):
    return {part: tensors[f"{module}.{part}"] for part in ("qweight", "qzeros", "scales")}


def logits_of(model, ids=(20, 21, 22, 23, 24, 25)):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits


def test_an_int32_holds_eight_columns_evens_before_odds():
    assert unpack(torch.tensor([[0x75316420]], dtype=torch.int32)).tolist() == [[*range(8)]]
    levels = torch.randint(0, 16, (5, 24), generator=torch.Generator().manual_seed(0))
    words = packed(levels)
    assert (words < 0).any()
    assert torch.equal(unpack(words).long(), levels)


@pytest.mark.parametrize(("group", "shape"), [(128, (24, 384)), (-1, (16, 40)), (16, (8, 112))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_what_reading_it_by_hand_gives(tmp_path, monkeypatch, group, shape, dtype):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    parts = quantised(weight, group)
    save_file({f"m.{name}": part for name, part in parts.items()}, tmp_path / "one.safetensors")
    header = {tensor.name: tensor for tensor in read_header(tmp_path / "one.safetensors")}
    found = with_weights(header, AwqFormat(group), "here")
    assert list(found) == ["m.weight"]
    assert found["m.weight"].shape == shape
    sizes = []
    monkeypatch.setattr(
        awq, "unpack", lambda words: sizes.append(8 * words.numel()) or unpack(words)
    )
    monkeypatch.setattr(awq, "_VALUES_AT_ONCE", 2 * 16 * 8 + 1)  # several groups, and a rest
    read = read_tensor(found["m.weight"], dtype)
    assert torch.equal(read, by_hand(parts).to(dtype))
    size = shape[1] if group == -1 else group
    assert max(sizes) <= max(2 * 16 * 8, size * shape[0])
    # To the nearest of 16 levels: half a step off; a scale in float16 adds to it at the ends.
    steps = parts["scales"].float().repeat_interleave(size, dim=0).t()
    assert ((read.float() - weight).abs() < 0.52 * steps + 0.01).all()


def test_the_embedded_model_as_awq_is_as_near_as_4_bits_let_it_be(embedded):
    loaded, floats = load_model(embedded, dtype=torch.float32), load_model(locate_model(EMBEDDED))
    tensors, weights = stored_tensors(embedded), floats.model.state_dict()
    changed = 0
    for name, weight in loaded.model.state_dict().items():
        full = weights[name].float()
        module = name.replace("model.language_model.", "model.").removesuffix(".weight")
        if f"{module}.qweight" not in tensors:
            assert torch.equal(weight, full.half().float()), name
            continue
        changed += 1
        steps = tensors[f"{module}.scales"].float()
        expected = float((steps.square().mean() / 12 * full.numel()).sqrt())  # a uniform error
        assert float((weight - full).norm()) == pytest.approx(expected, rel=0.05), name
    assert changed == 5 * 7
    # A weight is 9 % off, and so is a product of it; the residual stream is not quantised.
    wanted = logits_of(floats.model.float())
    assert 0.01 < (logits_of(loaded.model) - wanted).norm() / wanted.norm() < 0.09


def test_a_model_answers_with_a_note_and_the_bytes_that_the_plan_predicts(embedded, clip_path):
    model = videonsa.load(embedded, dtype="bfloat16")
    answer = model.ask(clip_path, "What moves?", max_new_tokens=2)
    note = next(note for note in answer.usage.notes if "AWQ" in note)
    assert note.startswith(DEQUANTISED.format("bfloat16"))
    plan = plan_video(clip_path, embedded, dtype="bfloat16")
    assert note in plan.notes
    assert "quantised again, to int8" in plan_video(clip_path, embedded, weights="int8").notes[0]
    held = sum(weight.nbytes for weight in model.model.parameters())
    assert load_shape(embedded).weight_bytes == model.shape.weight_bytes == held


def test_qwens_layout_runs_dense_in_bfloat16_with_its_tower_as_it_is(published):
    tensors = stored_tensors(published)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16, torch.int32}
    loaded = load_model(published)
    assert loaded.model.dtype == torch.bfloat16  # Qwen2.5 overflows in the float16 that it states
    assert loaded.notes[0] == "these weights have no gates: attention is dense"
    assert loaded.notes[1].startswith(DEQUANTISED.format("bfloat16"))
    state = loaded.model.state_dict()
    # The tower's MLPs have the names of the decoder's.
    block, layer = "visual.blocks.1.mlp.up_proj", "model.layers.1.mlp.up_proj"
    kept = tensors[f"{block}.weight"]
    assert torch.equal(state[f"model.{block}.weight"], kept.bfloat16())
    ours = state["model.language_model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(ours, by_hand(parts_of(tensors, layer)).bfloat16())
    assert load_shape(published).dtype == "bfloat16"
    assert load_model(published, dtype=torch.float16).model.dtype == torch.float16


@pytest.mark.parametrize("weights", ["int8", "full"])
def test_nsa_on_awq_takes_fresh_gates_or_refuses(published, weights):
    with pytest.raises(ModelError, match="have no gates"):
        load_model(published, method="nsa")
    loaded = load_model(published, method="nsa", fresh_gates=True, weights=weights)
    assert "the gates are fresh" in loaded.notes[0]
    assert ("quantised again" in loaded.notes[1]) == (weights == "int8")
    assert logits_of(loaded.model).isfinite().all()


def test_gates_of_an_adapter_are_put_on_an_awq_base(published, tmp_path):
    base = load_model(published, method="nsa", fresh_gates=True).model
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["g_proj_1", "g_proj_2"])
    adapted = get_peft_model(base, config)
    for weight in adapted.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, base=published)
    assert loaded.notes[0].startswith("LoRA adapter")
    assert loaded.notes[-1].startswith(DEQUANTISED.format("bfloat16"))
    torch.testing.assert_close(
        logits_of(loaded.model), logits_of(adapted.eval()), rtol=0, atol=0.05
    )


@pytest.mark.parametrize("method", ["xattention", "tri_shape:n_init=8,n_local=16,n_last=8"])
def test_sparse_prefill_of_awq_answers_as_of_its_floats(embedded, tmp_path, clip_path, method):
    convert(embedded, tmp_path / "floats", dtype=torch.float32)
    answers = [
        videonsa.load(folder, method=method).ask(clip_path, "What moves?", max_new_tokens=4)
        for folder in (embedded, tmp_path / "floats")
    ]
    assert answers[0].text == answers[1].text
    assert answers[0].usage.attention == method.partition(":")[0]


@pytest.mark.parametrize("to", ["videonsa", "qwen2_5_vl"])
def test_a_converted_checkpoint_is_float_and_computes_the_same(published, tmp_path, to):
    done = convert(published, tmp_path / "made", to=to)
    assert "int4 weights (AWQ) are written dequantised, in bfloat16" in done.notes
    assert "quant_config.json" not in done.files
    config = json.loads((tmp_path / "made/config.json").read_text())
    assert "quantization_config" not in json.dumps(config)
    assert config["dtype"] == "bfloat16"
    wanted, read = logits_of(load_model(published).model), load_model(tmp_path / "made")
    assert not any("AWQ" in note for note in read.notes)
    assert torch.equal(logits_of(read.model), wanted)
    if to == "qwen2_5_vl":
        stock = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            tmp_path / "made", dtype=torch.bfloat16
        )
        assert torch.equal(logits_of(stock), wanted)


def test_a_converted_checkpoint_may_be_of_another_dtype(published, tmp_path):
    convert(published, tmp_path / "made", dtype=torch.float32, fresh_gates="half")
    exact = by_hand(parts_of(stored_tensors(published), "model.layers.0.self_attn.k_proj"))
    made = stored_tensors(tmp_path / "made")
    assert torch.equal(made["model.layers.0.self_attn.k_proj.weight"], exact)


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = stated(16, **fields)
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = stored_tensors(folder)
    for old in folder.glob("model*"):
        old.unlink()
    change(tensors)
    save_file(tensors, path)


LAYER = "model.layers.0.mlp.up_proj"
DAMAGES = {
    "lacks": (lambda t: t.pop(f"{LAYER}.qzeros"), r"up_proj.qweight, of AWQ, and lacks .*qzeros"),
    "alone": (lambda t: t.pop(f"{LAYER}.qweight"), r"missing: .*up_proj.weight.*unexpected: "),
    "twice": (
        lambda t: t.update({f"{LAYER}.weight": torch.zeros(48, 448)}),
        "up_proj.qweight, of AWQ, and has .*up_proj.weight too",
    ),
    "dtype": (
        lambda t: t.update({f"{LAYER}.qweight": t[f"{LAYER}.qweight"].short()}),
        r"qweight I16 \[448, 6\].* are no AWQ weights of int4 in the GEMM layout in groups of 16",
    ),
    "transposed": (
        lambda t: t.update({f"{LAYER}.qweight": t[f"{LAYER}.qweight"].t().contiguous()}),
        r"qweight I32 \[6, 448\].* are no AWQ weights",
    ),
    "scalar": (
        lambda t: t.update({f"{LAYER}.qweight": torch.tensor(1, dtype=torch.int32)}),
        r"qweight I32 \[\].* are no AWQ weights",
    ),
    "other size": (
        lambda t: t.update(
            {f"{LAYER}.{name}": part for name, part in quantised(torch.ones(56, 448), 16).items()}
        ),
        r"up_proj.weight is \[56, 448\], wanted \[48, 448\]",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_parts_that_do_not_fit_are_refused_before_any_is_read(published, tmp_path, name):
    folder = shutil.copytree(published, tmp_path / "damaged")
    damage, message = DAMAGES[name]
    change_tensors(folder, damage)
    for read in (load_model, load_shape, lambda one: convert(one, tmp_path / "made")):
        with pytest.raises(ModelError, match=message) as caught:
            read(folder)
        assert "\n" not in str(caught.value)


def test_config_and_tensors_have_to_agree(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "changed")
    change_config(folder, group_size=32)
    with pytest.raises(ModelError, match=r"are no AWQ weights .* in groups of 32"):
        load_model(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"are quantised .*no quantization_config that says how"):
        load_model(folder)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 3 bytes")])
def test_host_memory_that_runs_out_is_told_and_no_damage(published, monkeypatch, error):
    def exhausted(*_):
        raise error

    monkeypatch.setattr(awq, "read_tensor", exhausted)
    with pytest.raises(BudgetError, match=r"GB on disk, more when dequantised, and do not fit"):
        load_model(published)


def test_published_ids_are_planned_without_their_files():
    floats, ints = (load_shape(f"Qwen/Qwen2.5-VL-7B-Instruct{end}") for end in ("", "-AWQ"))
    assert ints.is_awq and not floats.is_awq
    assert ints.weight_bytes == floats.weight_bytes


@pytest.mark.gpu
def test_weights_of_int4_on_a_gpu_are_those_of_awq_again(tmp_path):
    config = small("7B") | {"hidden_size": 28 * 64, "intermediate_size": 1024}
    config["rope_scaling"]["mrope_section"] = [8, 12, 12]
    config["vision_config"]["out_hidden_size"] = 28 * 64
    write_published(tmp_path / "floats", config, make_tensors(config))
    folder = write_awq(tmp_path / "awq", tmp_path / "floats", group=128)
    full = logits_of(load_model(tmp_path / "floats", device="cuda").model)
    once, again = (
        logits_of(load_model(folder, device="cuda", weights=kind).model)
        for kind in ("full", "int4")
    )
    assert (again - once).norm() < 0.3 * (once - full).norm()
