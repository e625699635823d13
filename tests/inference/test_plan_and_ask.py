"""What is planned is what is then loaded and asked, whatever the layout of a checkpoint."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

import videonsa
from videonsa.errors import ModelError
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.config import VideoNSAConfig
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.shape import load_shape

SETTINGS = {"fps": 1.0, "min_frames": 2, "max_frames": 512}
SETTINGS |= {"size": {"shortest_edge": 2352, "longest_edge": 4704}}
COMMIT = "0" * 40


def edit(folder, **changes):
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))


def text_of(folder):
    return json.loads((folder / "config.json").read_text())["text_config"]


def untied(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    head = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": head}, path, metadata={"format": "pt"})
    text = text_of(folder) | {"tie_word_embeddings": False}
    edit(folder, tie_word_embeddings=False, text_config=text)


def flat(folder):
    text = {name: value for name, value in text_of(folder).items() if name != "model_type"}
    edit(folder, text_config=..., **text)


def in_bfloat16(folder):
    path = folder / "model.safetensors"
    weights = {name: value.bfloat16() for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def without_stated_dtype(folder):
    in_bfloat16(folder)
    edit(folder, dtype=..., torch_dtype="auto")


def saved(folder, **changes):
    """A model with other fields in place of the one in the folder."""
    fields = json.loads((folder / "config.json").read_text())
    fields["text_config"] |= changes.pop("text_config", {})
    fields["vision_config"] |= changes.pop("vision_config", {})
    (folder / "model.safetensors").unlink()
    config = VideoNSAConfig.from_dict(fields | changes)
    VideoNSAForConditionalGeneration(config).save_pretrained(folder)


def released(folder):
    heads = {"hidden_size": 448, "num_attention_heads": 28, "num_key_value_heads": 4}
    spec = {"nsa": None, "vision_config": {"out_hidden_size": 448}}
    saved(folder, text_config=heads, **spec)
    text = text_of(folder) | {"block_counts": 16, "window_size": 128}
    edit(folder, model_type="qwen2_5_vl", nsa=..., attention=..., gate_init=..., text_config=text)


VARIANTS = {
    "nested": lambda folder: None,
    "flat": flat,
    "ties in text_config alone": lambda folder: edit(
        folder, tie_word_embeddings=..., text_config=text_of(folder) | {"tie_word_embeddings": True}
    ),
    "untied": untied,
    "dense twin": lambda folder: saved(folder, attention="dense", gates=None),
    "dense with gates": lambda folder: edit(folder, attention="dense"),
    "Qwen2.5-VL": lambda folder: (
        saved(folder, attention="dense", gates=None),
        edit(folder, model_type="qwen2_5_vl", nsa=..., attention=..., gate_init=...),
    ),
    "released": released,
    "stated dtype": in_bfloat16,
    "dtype auto": without_stated_dtype,
    "dtype float16": lambda folder: edit(folder, dtype="float16"),
    "settings": lambda folder: (folder / "video_preprocessor_config.json").write_text(
        json.dumps(SETTINGS)
    ),
}


@pytest.fixture
def copy(tiny_folder, tmp_path):
    """The tiny checkpoint, to be changed."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_folder, folder)
    return folder


def check_agreement(name, clip_path, **asked):
    planned = videonsa.plan_video(clip_path, name, device="cpu", **asked)
    qa = videonsa.load(name, device="cpu", **asked)
    used = qa.ask(clip_path, "?", max_new_tokens=1).usage
    frames = planned.sampling
    assert (frames.times, frames.grid) == (used.times, used.grid)
    assert (frames.height, frames.width) == (used.height, used.width)
    assert frames.num_tokens == used.video_tokens
    assert (planned.attention, planned.context) == (used.attention, used.context)
    assert (planned.spec, planned.model) == (used.spec, used.model)
    assert planned.parameters == sum(weight.numel() for weight in qa.model.parameters())
    own = load_model(name, **asked).model.dtype
    assert planned.dtype == str(own).removeprefix("torch.")
    return planned


@pytest.mark.parametrize("variant", VARIANTS)
def test_plan_and_ask_agree(variant, copy, clip_path):
    VARIANTS[variant](copy)
    planned = check_agreement(copy, clip_path)
    if variant in ("stated dtype", "settings", "dtype auto", "dtype float16"):
        by_default = {"stated dtype": "float32", "dtype auto": "bfloat16", "settings": "float32"}
        assert planned.dtype == by_default.get(variant, "float16")


@pytest.mark.parametrize("attention", ["nsa", "dense"])
def test_plan_and_ask_agree_on_the_attention_that_is_asked_for(attention, copy, clip_path):
    check_agreement(copy, clip_path, method=attention)
    saved(copy, attention="dense", gates=None)
    if attention == "dense":
        return
    check_agreement(copy, clip_path, method="nsa", fresh_gates=True)
    for call in (load_shape, videonsa.load):
        with pytest.raises(ModelError, match="have no gates"):
            call(copy, method="nsa")


@pytest.mark.parametrize("revision", [None, "old"])
def test_plan_and_ask_of_a_hub_id_read_the_same_files(
    copy, clip_path, tmp_path, monkeypatch, revision
):
    VARIANTS["settings"](copy)
    cache = tmp_path / "cache/models--owner--name"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / (revision or "main")).write_text(COMMIT)
    copy.rename(cache / "snapshots" / COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    planned = check_agreement("owner/name", clip_path, revision=revision)
    assert planned.sampling.sampled_fps == 1
    if revision:
        assert planned.model == "owner/name@old"
        with pytest.raises(ModelError, match="nor reachable"):
            load_shape("owner/name")


def test_the_dense_study_checkpoint_is_planned_without_gates(clip_path, request):
    folder = request.config.rootpath / "checkpoints/study-dense"
    planned = check_agreement(folder, clip_path)
    assert (planned.parameters, planned.attention) == (2_836_480, "dense")


@pytest.mark.parametrize("broken", ["[]", '{"size": 3}', '{"fps": "x"}', '{"fps": []}', "{"])
def test_settings_that_cannot_be_used_are_refused_alike(broken, copy, clip_path):
    (copy / "video_preprocessor_config.json").write_text(broken)
    for call in (lambda: videonsa.plan_video(clip_path, copy), lambda: videonsa.load(copy)):
        with pytest.raises(ModelError, match="video_preprocessor_config") as caught:
            call()
        assert "\n" not in str(caught.value)
