import json
import shutil
import stat
import weakref

import pytest
import torch
from published_configs import (
    BESIDE,
    SIZES,
    make_tensors,
    parameter_names,
    small,
    styled,
    write_published,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tiny_models import prompt, tiny

from videonsa.errors import ModelError, UsageError
from videonsa.models.checkpoints import convert as convert_module
from videonsa.models.checkpoints.convert import convert
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.config import VideoNSAConfig
from videonsa.ops.spec import NSASpec

OURS = ("config.json", "modeling_videonsa.py")


@pytest.fixture
def released(tmp_path):
    """The released VideoNSA's layout, small."""
    config = styled(small("7B"), "transformers 4")
    return write_published(tmp_path / "released", config, make_tensors(small("7B"), gates=True))


@pytest.fixture
def plain(tmp_path):
    """Qwen2.5-VL's layout, small, with a tied head."""
    return write_published(tmp_path / "plain", small("3B"), make_tensors(small("3B")))


@pytest.fixture
def target(tmp_path):
    return tmp_path / "made" / "target"


def stored(folder):
    """All tensors of a folder by their names on disk."""
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_equal_models(first, second):
    ours, theirs = load_model(first).model, load_model(second).model
    weights = theirs.state_dict()
    assert ours.state_dict().keys() == weights.keys()
    for name, tensor in ours.state_dict().items():
        assert tensor.dtype == weights[name].dtype, name
        assert torch.equal(tensor, weights[name]), name
    assert ours.config.nsa_spec == theirs.config.nsa_spec
    assert ours.config.attention == theirs.config.attention


def nothing_is_left(target):
    return not target.parent.exists() or not list(target.parent.iterdir())


@pytest.mark.parametrize("source_layout", ["hub", "transformers"])
@pytest.mark.parametrize("layout", ["hub", "transformers"])
@pytest.mark.parametrize("name", SIZES)
def test_published_checkpoints_become_ours_bit_by_bit(
    tmp_path, target, name, layout, source_layout
):
    tensors = make_tensors(small(name))
    named = tensors if source_layout == "hub" else parameter_names(tensors)
    source = write_published(tmp_path / "source", small(name), named)
    done = convert(source, target, layout=layout)
    wanted = tensors if layout == "hub" else parameter_names(tensors)
    assert stored(target).keys() == wanted.keys()
    assert done.num_tensors == len(wanted)
    assert done.num_bytes == sum(tensor.nbytes for tensor in wanted.values())
    assert done.notes == ("these weights have no gates: attention is dense",)
    assert_equal_models(source, target)


def test_released_checkpoint_becomes_ours_with_its_spec_written_down(released, target):
    done = convert(released, target)
    assert "preset 'released'" in done.notes[0]
    config = json.loads((target / "config.json").read_text())
    assert config["model_type"] == "videonsa"
    assert config["architectures"] == ["VideoNSAForConditionalGeneration"]
    assert config["nsa"]["compressed_mask"] == "current_and_later"
    assert config["dtype"] == "bfloat16"
    assert VideoNSAConfig.from_pretrained(target).nsa_spec == NSASpec.released()
    assert load_model(target).notes == ()
    assert_equal_models(released, target)


def test_there_and_back_again_gives_the_published_tensors(released, tmp_path):
    convert(released, tmp_path / "there", layout="transformers", max_shard_bytes=10**6)
    convert(tmp_path / "there", tmp_path / "back", layout="hub")
    before, after = stored(released), stored(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_answers_stay_the_same(tmp_path, target):
    model = tiny()
    model.save_pretrained(tmp_path / "source", max_shard_size="100KB")
    convert(tmp_path / "source", target, layout="transformers", max_shard_bytes=150_000)
    assert torch.equal(load_model(target).model(**prompt(4)).logits, model(**prompt(4)).logits)


def test_files_hold_at_most_the_wanted_bytes_and_the_index_says_where_all_is(released, target):
    done = convert(released, target, max_shard_bytes=2_000_000)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    assert index["metadata"]["total_size"] == done.num_bytes
    for file in files:
        tensors = load_file(target / file)
        assert {index["weight_map"][name] for name in tensors} == {file}
        assert len(tensors) == 1 or sum(x.nbytes for x in tensors.values()) <= 2_000_000
        with safe_open(target / file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert set(done.files) == {*files, *BESIDE, *OURS, "model.safetensors.index.json"}


def test_only_one_file_is_in_memory_at_a_time(released, target, monkeypatch):
    before, most = [], []

    def save(tensors, path, metadata):
        assert all(tensor() is None for tensor in before)
        before[:] = [weakref.ref(tensor) for tensor in tensors.values()]
        most.append(sum(tensor.nbytes for tensor in tensors.values()))
        save_file(tensors, path, metadata=metadata)

    save_file = convert_module.save_file
    monkeypatch.setattr(convert_module, "save_file", save)
    convert(released, target, max_shard_bytes=2_000_000, dtype=torch.float32)
    assert len(most) > 4
    largest = max(tensor.nbytes for tensor in stored(target).values())
    assert max(most) <= max(2_000_000, largest)


def test_tokenizer_template_and_processor_are_copied_the_rest_is_not(plain, target):
    (plain / "pytorch_model.bin").write_bytes(b"old")
    (plain / "README.md").write_text("about the source")
    (plain / "chat_template.jinja").write_text("{{ messages }}")
    done = convert(plain, target)
    assert set(done.files) == {*BESIDE, *OURS, "chat_template.jinja", "model.safetensors"}
    for name in (*BESIDE, "chat_template.jinja"):
        assert (target / name).read_bytes() == (plain / name).read_bytes()


def test_files_are_as_readable_as_their_folder(plain, target):
    convert(plain, target)
    readers = stat.S_IMODE(target.stat().st_mode) & 0o444
    for path in target.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o444 == readers, path.name


def test_dtype_changes_weights_and_config(released, target):
    convert(released, target, dtype=torch.float32)
    loaded = load_model(target).model
    assert loaded.dtype == torch.float32
    assert loaded.config.text_config.dtype == torch.float32
    before, after = stored(released), stored(target)
    assert all(torch.equal(before[name].float(), after[name]) for name in before)


@pytest.mark.parametrize("start", ["half", "released"])
def test_fresh_gates_are_added_and_repeatable(plain, tmp_path, start):
    folders = [tmp_path / str(number) for number in range(3)]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        done = convert(plain, folder, fresh_gates=start, seed=seed, max_shard_bytes=10**6)
    assert f"gate_init {start!r}" in done.notes[0]
    loaded = load_model(folders[0])
    config = loaded.model.config
    assert (config.attention, config.gate_init, config.nsa_spec) == ("nsa", start, NSASpec())
    for layer in loaded.model.model.language_model.layers:
        gates = layer.self_attn
        assert gates.g_proj_1.weight.dtype == torch.bfloat16
        assert gates.g_proj_1.weight.float().std().item() == pytest.approx(0.02, rel=0.05)
        assert not gates.g_proj_1.bias.any()
        assert not gates.g_proj_2.bias.any()
        assert bool(gates.g_proj_2.weight.any()) == (start == "released")
    first, again, other = map(stored, folders)
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    drawn = ("g_proj_1", "g_proj_2") if start == "released" else ("g_proj_1",)
    assert changed == {
        f"model.layers.{layer}.self_attn.{name}.weight" for layer in range(2) for name in drawn
    }
    one, two = (first[f"model.layers.{layer}.self_attn.g_proj_1.weight"] for layer in range(2))
    assert not torch.equal(one, two)


def test_fresh_gates_on_weights_with_gates_are_refused(released, target):
    with pytest.raises(ModelError, match=r"have gates: .*leave out fresh_gates"):
        convert(released, target, fresh_gates="half")
    assert nothing_is_left(target)


def test_old_buffers_and_a_stored_tied_head_are_left_out(tmp_path, target):
    tensors = make_tensors(small("3B"))
    more = {
        "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(64),
    }
    source = write_published(tmp_path / "source", small("3B"), tensors | more)
    convert(source, target)
    assert stored(target).keys() == tensors.keys()
    assert_equal_models(source, target)


def test_progress_tells_each_file(released, target):
    lines = []
    done = convert(released, target, max_shard_bytes=4_000_000, progress=lines.append)
    count = sum(name.endswith(".safetensors") for name in done.files)
    assert [line.split(",")[0] for line in lines] == [
        f"wrote file {number + 1} of {count}" for number in range(count)
    ]
    assert lines[-1].endswith(f"{done.num_bytes / 1e9:.2f} of {done.num_bytes / 1e9:.2f} GB")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SafetensorError])
def test_what_stops_half_way_leaves_nothing(released, target, monkeypatch, error):
    def progress(line):
        assert (target.parent / ".target.partial").is_dir()
        raise error("stopped here")

    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else UsageError):
        convert(released, target, max_shard_bytes=10**6, progress=progress)
    assert nothing_is_left(target)


def test_an_existing_target_is_kept_unless_forced(released, plain, target):
    convert(plain, target)
    before = stored(target)
    with pytest.raises(UsageError, match=r"target .* exists: .*--force"):
        convert(released, target)
    assert stored(target).keys() == before.keys()
    convert(released, target, force=True)
    assert_equal_models(released, target)
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_replacement_that_fails_keeps_what_was_there(released, plain, target, monkeypatch):
    convert(plain, target)
    before = stored(target)

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(released, target, force=True, progress=stop)
    assert stored(target).keys() == before.keys()
    rename = convert_module.Path.rename

    def fail(path, new):
        if path.name == ".target.partial":
            raise OSError("no renaming")
        return rename(path, new)

    monkeypatch.setattr("videonsa.disk._exchange", lambda *_: False)
    monkeypatch.setattr(convert_module.Path, "rename", fail)
    with pytest.raises(UsageError, match="no renaming"):
        convert(released, target, force=True)
    assert stored(target).keys() == before.keys()
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_force_replaces_checkpoints_and_empty_folders_only(plain, tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"picture")
    for name in ("file", "photos"):
        with pytest.raises(UsageError, match="is no checkpoint, so it is not replaced"):
            convert(plain, tmp_path / name, force=True)
    assert (tmp_path / "photos" / "one.jpg").exists()
    (tmp_path / "empty").mkdir()
    convert(plain, tmp_path / "empty", force=True)
    assert_equal_models(plain, tmp_path / "empty")


def test_the_source_is_never_replaced(plain, tmp_path):
    shutil.copy(plain / "config.json", tmp_path)
    for target in (plain, tmp_path, plain / ".." / "plain"):
        with pytest.raises(UsageError, match="is or holds the source"):
            convert(plain, target, force=True)
    assert load_model(plain).notes


def test_a_folder_left_by_a_killed_run_is_named(plain, target):
    (target.parent / ".target.partial").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"\.target\.partial exists, of a conversion"):
        convert(plain, target)
    assert (target.parent / ".target.partial").is_dir()


def test_a_disk_without_room_is_told_before_anything_is_written(plain, target, monkeypatch):
    usage = shutil.disk_usage(plain)._replace(free=1000)
    monkeypatch.setattr(convert_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UsageError, match=r"needs 0\.00 GB but 0\.00 GB are free"):
        convert(plain, target)
    assert nothing_is_left(target)


def test_a_place_that_cannot_be_written_is_one_line(plain, tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(UsageError, match=r"cannot write .*file/target") as caught:
        convert(plain, tmp_path / "file" / "target")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_shard_bytes": 0}, "max_shard_bytes=0: want a positive number"),
        ({"layout": "flat"}, "layout='flat': want 'hub' or 'transformers'"),
    ],
)
def test_options_outside_their_domain_are_refused(plain, target, options, message):
    with pytest.raises(UsageError, match=message):
        convert(plain, target, **options)
    assert nothing_is_left(target)


def test_a_broken_source_leaves_no_target(plain, target):
    next(iter(sorted(plain.glob("model-*")))).unlink()
    with pytest.raises(ModelError, match=r"lacks model-00001-of-00003\.safetensors"):
        convert(plain, target)
    assert nothing_is_left(target)
