import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import EOS, IMAGE, VIDEO, config_fields, prompt, qwen, tiny

from videonsa.errors import BudgetError, ModelError
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.methods import nsa_method
from videonsa.ops.spec import NSASpec

OLD, NEW = "published", "as in memory"


def write(folder, model, *, layout=OLD, weights=None):
    """A checkpoint whose names on disk have the given layout."""
    model.config.save_pretrained(folder)
    named = {}
    for name, tensor in (weights or model.state_dict()).items():
        if layout == OLD:
            name = name.replace("model.language_model.", "model.").replace(
                "model.visual.", "visual."
            )
        named[name] = tensor.contiguous().clone()
    if model.config.tie_word_embeddings:
        named.pop("lm_head.weight")
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def ours(tmp_path):
    tiny().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def plain(tmp_path):
    """A Qwen2.5-VL checkpoint."""
    return write(tmp_path, qwen())


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("layout", [OLD, NEW])
@pytest.mark.parametrize("tied", [False, True])
def test_qwen_weights_run_dense_and_say_so(tmp_path, layout, tied):
    reference = qwen(tie_word_embeddings=tied)
    loaded = load_model(write(tmp_path, reference, layout=layout))
    assert loaded.notes == ("these weights have no gates: attention is dense",)
    assert loaded.model.config.attention == "dense"
    assert not loaded.model.training
    for name, tensor in reference.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    ids = torch.tensor([[20, 21, 22]])
    torch.testing.assert_close(loaded.model(input_ids=ids).logits, reference(input_ids=ids).logits)


@pytest.mark.parametrize("layout", [OLD, NEW])
def test_our_weights_come_back_in_both_layouts(tmp_path, layout):
    model = tiny()
    loaded = load_model(write(tmp_path, model, layout=layout))
    assert loaded.notes == ()
    assert loaded.folder == tmp_path
    assert torch.equal(loaded.model(**prompt(4)).logits, model(**prompt(4)).logits)


def test_published_flat_config_is_understood(tmp_path):
    """The config.json of Qwen2.5-VL on the hub keeps the text fields at the top."""
    reference = qwen()
    write(tmp_path, reference)
    text = config_fields()["text_config"]
    rope = text.pop("rope_parameters")
    published = text | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "image_token_id": IMAGE,
        "max_window_layers": 2,
        "model_type": "qwen2_5_vl",
        "rms_norm_eps": reference.config.text_config.rms_norm_eps,
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "rope_theta": rope["rope_theta"],
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_sliding_window": False,
        "video_token_id": VIDEO,
        "vision_config": config_fields()["vision_config"]
        | {"in_chans": 3, "spatial_patch_size": 14},
        "vision_token_id": 9,
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    loaded = load_model(tmp_path, dtype=torch.float32)
    config = loaded.model.config
    assert (config.video_token_id, config.text_config.eos_token_id) == (VIDEO, EOS)
    ids = torch.tensor([[20, 21, 22]])
    torch.testing.assert_close(loaded.model(input_ids=ids).logits, reference(input_ids=ids).logits)


def test_shards_are_read(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = load_model(str(tmp_path))
    assert torch.equal(loaded.model(**prompt(4)).logits, model(**prompt(4)).logits)
    next(iter(sorted(tmp_path.glob("model-*.safetensors")))).unlink()
    with pytest.raises(ModelError, match=r"lacks model-00001-of"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(ModelError, match="has no weight_map"):
        load_model(tmp_path)


@pytest.fixture
def sharded(tmp_path):
    """Ours, in several shards."""
    tiny().save_pretrained(tmp_path, max_shard_size="100KB")
    return tmp_path


def shards(folder):
    return sorted(folder.glob("model-*.safetensors"))


def edit_index(folder, **names):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= names
    path.write_text(json.dumps(index))


def refused(folder):
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_missing_shard_is_named(sharded):
    first, second, *_ = shards(sharded)
    first.unlink()
    second.unlink()
    assert f"lacks {first.name}, {second.name}: download it again" in refused(sharded)


def test_a_shard_without_a_tensor_that_the_index_wants_there_is_named(sharded):
    file = shards(sharded)[0].name
    edit_index(sharded, **{"model.extra": file, "model.other": file})
    message = refused(sharded)
    assert f"{file} lacks" in message
    assert "model.extra, model.other: download both again" in message


def test_a_shard_with_a_tensor_that_the_index_wants_elsewhere_is_named(sharded):
    first, second, *_ = shards(sharded)
    with safe_open(second, "pt") as file:
        name = next(iter(file.keys()))
    edit_index(sharded, **{name: first.name})
    assert f"{first.name} lacks" in refused(sharded)
    with safe_open(first, "pt") as file:
        own = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(own | {name: torch.zeros(2)}, first, metadata={"format": "pt"})
    message = refused(sharded)
    assert f"{second.name} holds" in message
    assert name in message


@pytest.mark.parametrize("file", [3, "", "../other.safetensors", "/other.safetensors", "."])
def test_an_index_that_points_outside_the_folder_is_refused(sharded, file):
    edit_index(sharded, **{"model.extra": file})
    assert "wants model.extra in" in refused(sharded)


@pytest.mark.parametrize("left", [0, 4, 100, -100])
def test_a_truncated_shard_is_named(sharded, left):
    shard = shards(sharded)[1]
    shard.write_bytes(shard.read_bytes()[:left])
    assert f"{shard} is no readable safetensors file" in refused(sharded)


def test_a_weight_stored_under_both_its_names_is_refused(ours):
    change_weights(ours, lambda w: w.update({"model.language_model.norm.weight": torch.ones(64)}))
    message = refused(ours)
    assert "model.language_model.norm.weight twice" in message
    assert "model.norm.weight in model.safetensors" in message


def test_quantised_weights_are_refused_by_name_and_dtype(ours):
    ints = torch.zeros(64, dtype=torch.int8)
    change_weights(ours, lambda weights: weights.update({"model.norm.weight": ints}))
    message = refused(ours)
    assert "of another dtype than F64, F32, F16, BF16: " in message
    assert "model.language_model.norm.weight is I8" in message


def test_a_tied_head_may_be_stored_if_it_equals_the_embedding(tmp_path):
    reference = qwen(tie_word_embeddings=True)
    write(tmp_path, reference)
    embedding = reference.get_input_embeddings().weight.detach()
    change_weights(tmp_path, lambda weights: weights.update({"lm_head.weight": embedding.clone()}))
    loaded = load_model(tmp_path).model
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded.lm_head.weight, embedding)
    change_weights(tmp_path, lambda weights: weights["lm_head.weight"][-1].add_(1))
    message = refused(tmp_path)
    assert "ties lm_head.weight to model.embed_tokens.weight" in message
    assert "set tie_word_embeddings to false" in message


HEADS = {"hidden_size": 448, "num_attention_heads": 28, "num_key_value_heads": 4}


def test_gates_under_a_qwen_config_are_the_released_ones(tmp_path):
    fields = config_fields(**HEADS)
    write(tmp_path, qwen(**fields), weights=tiny(**fields).state_dict())
    loaded = load_model(tmp_path)
    assert loaded.model.config.nsa_spec == NSASpec.released()
    assert "released" in loaded.notes[0]
    assert "current_and_later" in loaded.notes[0]
    paper = load_model(tmp_path, method=nsa_method(NSASpec.paper(block_size=4)))
    assert paper.model.config.nsa_spec == NSASpec(block_size=4)
    assert paper.notes == ()


def test_gates_under_a_qwen_config_of_other_heads_are_none_that_can_run(tmp_path):
    write(tmp_path, qwen(), weights=tiny().state_dict())
    message = refused(tmp_path)
    assert "28 query and 4 KV heads, and this model has 4 and 2" in message
    assert load_model(tmp_path, method="dense").model.config.attention == "dense"
    assert load_model(tmp_path, method=nsa_method(NSASpec())).model.config.nsa_spec == NSASpec()


def test_nsa_on_weights_without_gates_needs_fresh_gates(plain):
    with pytest.raises(ModelError, match=r"have no gates .*--method dense.*--fresh-gates"):
        load_model(plain, method="nsa")
    loaded = load_model(plain, method="nsa", fresh_gates=True)
    assert "untrained" in loaded.notes[0]
    for layer in loaded.model.model.language_model.layers:
        assert not layer.self_attn.g_proj_2.weight.any()
        assert not layer.self_attn.g_proj_2.bias.any()
        assert layer.self_attn.g_proj_1.weight.std() > 0.01
    assert torch.equal(
        loaded.model.state_dict()["lm_head.weight"],
        load_file(plain / "model.safetensors")["lm_head.weight"],
    )


def test_dense_on_weights_with_gates_leaves_them_out(ours):
    loaded = load_model(ours, method="dense")
    assert "left out" in loaded.notes[0]
    inputs = prompt(4)
    nsa = load_model(ours).model
    dense = nsa(**inputs, method="dense").logits
    torch.testing.assert_close(loaded.model(**inputs).logits, dense)


def test_fresh_gates_do_not_touch_trained_ones(ours):
    loaded = load_model(ours, method="nsa", fresh_gates=True)
    assert loaded.notes == ()
    assert torch.equal(loaded.model(**prompt(4)).logits, load_model(ours).model(**prompt(4)).logits)


def test_dtype_is_that_of_the_weights_or_as_asked(tmp_path):
    tiny().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path).model.dtype == torch.bfloat16
    assert load_model(tmp_path, dtype=torch.float32).model.dtype == torch.float32


@pytest.mark.parametrize("attention", [None, "dense"])
def test_missing_weight_is_named_with_its_shape(ours, attention):
    change_weights(ours, lambda weights: weights.pop("model.layers.1.self_attn.k_proj.bias"))
    with pytest.raises(
        ModelError, match=r"missing: model.language_model.layers.1.self_attn.k_proj.bias \[32\]"
    ):
        load_model(ours, method=attention)
    with pytest.raises(ModelError, match=r"missing .*layers.1.self_attn.k_proj.bias"):
        VideoNSAForConditionalGeneration.from_pretrained(ours)


def test_one_missing_gate_is_missing_even_with_fresh_gates(ours):
    change_weights(ours, lambda weights: weights.pop("model.layers.1.self_attn.g_proj_2.bias"))
    with pytest.raises(ModelError, match=r"missing: .*g_proj_2.bias \[12\]"):
        load_model(ours, fresh_gates=True)


def test_unexpected_weight_is_named(ours):
    change_weights(ours, lambda weights: weights.update({"model.extra": torch.zeros(3)}))
    with pytest.raises(ModelError, match=r"unexpected: model.language_model.extra \[3\]"):
        load_model(ours)
    with pytest.raises(ModelError, match=r"unexpected .*extra"):
        VideoNSAForConditionalGeneration.from_pretrained(ours)


def test_weight_of_another_shape_is_named(ours):
    change_weights(ours, lambda weights: weights.update({"lm_head.weight": torch.zeros(2, 64)}))
    with pytest.raises(ModelError, match=r"lm_head.weight is \[2, 64\], wanted \[128, 64\]"):
        load_model(ours)


def test_untied_head_must_be_there(plain):
    change_weights(plain, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(ModelError, match=r"missing: lm_head.weight \[128, 64\]"):
        load_model(plain)


def test_unusable_folders_get_one_clear_line(tmp_path, ours):
    broken = tmp_path / "broken"
    for spoil, message in (
        (lambda: shutil.rmtree(broken), "is no folder and no Hugging Face id"),
        (lambda: (broken / "config.json").unlink(), "has no config.json"),
        (lambda: (broken / "config.json").write_text("{"), "is not readable JSON"),
        (lambda: (broken / "config.json").write_text("[]"), "holds no JSON object"),
        (lambda: edit(broken, model_type="llama"), "model_type='llama'"),
        (lambda: edit(broken, text_config={"hidden_size": "wide"}), "hidden_size is 'wide'"),
        (lambda: edit(broken, vision_config={"num_heads": 0}), "hidden_size is missing"),
        (lambda: edit(broken, nsa={"window_size": -1}), "nsa.window_size=-1: want"),
        (lambda: (broken / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda: (broken / "model.safetensors").write_bytes(b"weights"), "no readable safetensors"),
        (lambda: truncate(broken / "model.safetensors"), "no readable safetensors"),
    ):
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(ours, broken, ignore=shutil.ignore_patterns("broken"))
        spoil()
        with pytest.raises(ModelError, match=message) as caught:
            load_model(broken)
        assert "\n" not in str(caught.value)


def edit(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("name", ["no-such-model", "a/b/c", "/no/such/folder", "owner/na me", ""])
def test_what_is_neither_folder_nor_hub_id_is_refused(name):
    with pytest.raises(ModelError, match=r"is no folder and no Hugging Face id|has no config"):
        load_model(name)


def test_unreachable_hub_is_one_clear_line(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(
        ModelError, match="'owner/name' is neither in the local cache nor"
    ) as caught:
        load_model("owner/name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["from_pretrained", "to"])
def test_weights_that_do_not_fit_are_refused_with_their_size(ours, monkeypatch, where):
    def exhausted(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(VideoNSAForConditionalGeneration, where, exhausted)
    with pytest.raises(BudgetError, match=r"weights are 0\.0 GB on disk and do not fit cpu: take"):
        load_model(ours)
