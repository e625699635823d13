"""LoRA adapters: merged as peft computes them, or refused before anything is."""

import importlib.util
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import prompt, tiny

from videonsa.errors import ModelError, UsageError
from videonsa.models.checkpoints.adapters import CONFIG, TENSORS, read_adapter
from videonsa.models.checkpoints.convert import convert
from videonsa.models.checkpoints.loading import load_model, read_checkpoint
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.train.parameters import _PROJECTIONS

GATES = ["g_proj_1", "g_proj_2"]
PROMPT = prompt(4)


def logits_of(model):
    with torch.no_grad():
        return model(**PROMPT).logits


def write_adapter(folder, base, *, attention="nsa", gates=True, **options):
    """A trained adapter of a base on disk, as peft writes it, and what base and adapter compute."""
    model = load_model(base, method=attention, fresh_gates=True).model
    config = {"r": 3, "lora_alpha": 7, "target_modules": _PROJECTIONS} | options
    saved = {"modules_to_save": GATES} if gates else {}
    adapted = get_peft_model(model, LoraConfig(**config, **saved)).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1, generator=generator)
    adapted.save_pretrained(folder)
    return logits_of(adapted)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of a model with gates, and of one without."""
    folder = tmp_path_factory.mktemp("bases")
    tiny().save_pretrained(folder / "gated")
    tiny(attention="dense").save_pretrained(folder / "dense")
    return folder


@pytest.fixture(scope="module")
def adapters(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    wanted = {
        "gated": write_adapter(folder / "gated", bases / "gated"),
        "dense": write_adapter(folder / "dense", bases / "dense", attention="dense", gates=False),
        "brings gates": write_adapter(folder / "brings gates", bases / "dense"),
        "patterns": write_adapter(
            folder / "patterns",
            bases / "gated",
            gates=False,
            rank_pattern={"q_proj": 2},
            alpha_pattern={"layers.1.mlp.up_proj": 30},
            use_rslora=True,
        ),
    }
    return folder, wanted


@pytest.mark.parametrize("name", ["gated", "dense", "brings gates", "patterns"])
def test_a_merged_adapter_computes_what_peft_does_and_is_named(adapters, bases, name):
    folder, wanted = adapters
    loaded = load_model(folder / name)
    torch.testing.assert_close(logits_of(loaded.model), wanted[name], rtol=1e-4, atol=1e-5)
    base = bases / ("gated" if name in ("gated", "patterns") else "dense")
    without = logits_of(load_model(base).model)
    assert (without - wanted[name]).abs().max() > 0.05
    assert loaded.notes[0] == f"LoRA adapter {folder / name} (rank 3) merged into {base}"
    assert (loaded.folder, loaded.adapter) == (base, folder / name)
    assert not any("lora" in parameter for parameter in loaded.model.state_dict())


def test_gates_of_an_adapter_attend_as_its_config_says_or_its_base_with_a_note(adapters, tmp_path):
    loaded = load_model(adapters[0] / "brings gates")
    assert loaded.model.config.nsa_spec.block_size == "frame"
    assert "does not say of which NSA" in loaded.notes[1]
    assert "block_size 'frame'" in loaded.notes[1]
    folder = shutil.copytree(adapters[0] / "brings gates", tmp_path / "with config")
    config = tiny().config
    config.nsa = {"block_size": 16}
    config.save_pretrained(folder)
    stated = load_model(folder)
    assert stated.model.config.nsa_spec.block_size == 16
    assert len(stated.notes) == 1


def test_dense_attention_leaves_the_gates_of_an_adapter_out_and_says_so(adapters):
    loaded = load_model(adapters[0] / "brings gates", method="dense")
    assert "the gates of the adapter are left out" in loaded.notes[-1]
    assert logits_of(loaded.model).isfinite().all()


def test_an_adapter_in_the_older_layout_of_names_is_the_same(adapters, tmp_path):
    folder = shutil.copytree(adapters[0] / "gated", tmp_path / "older")
    tensors = load_file(folder / TENSORS)
    save_file(
        {name.replace(".language_model.", "."): value for name, value in tensors.items()},
        folder / TENSORS,
    )
    got = logits_of(load_model(folder).model)
    torch.testing.assert_close(got, adapters[1]["gated"], rtol=1e-4, atol=1e-5)


def test_another_base_may_be_named(adapters, bases, tmp_path):
    folder = shutil.copytree(adapters[0] / "gated", tmp_path / "moved")
    change(folder, base_model_name_or_path="/gone/from/here")
    with pytest.raises(ModelError, match="'/gone/from/here' is no folder"):
        load_model(folder)
    loaded = load_model(folder, base=bases / "gated")
    assert loaded.notes[0].endswith(f"merged into {bases / 'gated'}")
    with pytest.raises(ModelError, match="names no base: pass it with base"):
        load_model(change(folder, base_model_name_or_path=None))
    with pytest.raises(UsageError, match="holds no adapter"):
        load_model(bases / "gated", base=bases / "gated")


def test_an_adapter_beside_whole_weights_is_refused_by_all_that_read_them(
    adapters, bases, tmp_path
):
    folder = shutil.copytree(bases / "gated", tmp_path / "both")
    for name in (CONFIG, TENSORS):
        shutil.copy(adapters[0] / "gated" / name, folder)
    for read in (load_model, read_checkpoint, lambda one: convert(one, tmp_path / "converted")):
        with pytest.raises(ModelError, match="a whole checkpoint and a LoRA adapter"):
            read(folder)
    assert not (tmp_path / "converted").exists()
    with pytest.raises(ModelError, match="applies without a word"):
        VideoNSAForConditionalGeneration.from_pretrained(folder)


def test_what_wants_whole_checkpoints_says_so_of_an_adapter(adapters, tmp_path):
    with pytest.raises(ModelError, match="a LoRA adapter and no weights"):
        convert(adapters[0] / "gated", tmp_path / "converted")


def test_without_peft_the_package_is_named(adapters, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else found(name)
    )
    with pytest.raises(ModelError, match="needs peft, which is not installed"):
        load_model(adapters[0] / "gated")


def change(folder, **fields):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))
    return folder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"use_dora": True}, "use_dora True, which is not supported"),
        ({"bias": "all"}, "bias 'all', which is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"r": 0}, "r 0"),
        ({"r": 10**30}, f"r {10**30}"),
        ({"r": "8"}, "r '8'"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"rank_pattern": {"(a+)+$": 2}}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern"),
        ({"r": 4}, "of another shape"),
        ({"rank_pattern": {"k_proj": 2}}, "of another shape"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_line(adapters, tmp_path, fields, message):
    folder = shutil.copytree(adapters[0] / "gated", tmp_path / "changed")
    with pytest.raises(ModelError) as caught:
        load_model(change(folder, **fields))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["[]", "{", "", '{"r": 1' + "0" * 5000 + "}"])
def test_a_config_that_is_no_json_object_is_one_line(adapters, tmp_path, text):
    folder = shutil.copytree(adapters[0] / "gated", tmp_path / "changed")
    (folder / CONFIG).write_text(text)
    with pytest.raises(ModelError, match=CONFIG):
        load_model(folder)


Q = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
G = "base_model.model.model.language_model.layers.0.self_attn.g_proj_1.weight"


def nan_in(name):
    def spoil(tensors):
        tensors[name][0, 0] = float("nan")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (nan_in(f"{Q}.lora_A.weight"), "holds NaN"),
        (nan_in(G), "holds NaN"),
        (lambda t: t.pop(f"{Q}.lora_B.weight"), "missing: model.language_model.layers.0"),
        (lambda t: t.update({f"{Q}s.lora_A.weight": torch.zeros(3, 64)}), "unexpected: model."),
        (lambda t: t.update({f"{Q}.lora_C.weight": torch.zeros(3, 64)}), "unexpected: model."),
        (lambda t: t.update({"x.lora_A.weight": torch.zeros(3, 64)}), "named base_model.model."),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(3, 60)}), "is [3, 60], wanted"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(2, 64)}), "is [2, 64], wanted"),
        (lambda t: t.update({G: torch.zeros(3)}), "is [3], wanted"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(3, 64).long()}), "no floats"),
        (dict.clear, "it is empty"),
    ],
)
def test_tensors_that_do_not_fit_or_are_not_finite_are_refused(adapters, tmp_path, spoil, message):
    folder = shutil.copytree(adapters[0] / "gated", tmp_path / "changed")
    tensors = load_file(folder / TENSORS)
    spoil(tensors)
    save_file(tensors, folder / TENSORS)
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_without_readable_tensors_is_refused(adapters, tmp_path):
    folder = shutil.copytree(adapters[0] / "gated", tmp_path / "changed")
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:1000])
    with pytest.raises(ModelError, match="no readable safetensors"):
        load_model(folder)
    (folder / TENSORS).unlink()
    with pytest.raises(ModelError, match=f"has no {TENSORS}"):
        read_adapter(folder)


def test_an_adapter_is_no_base(adapters):
    for base in ("dense", "gated"):
        with pytest.raises(ModelError, match="is an adapter itself"):
            load_model(adapters[0] / "gated", base=adapters[0] / base)
