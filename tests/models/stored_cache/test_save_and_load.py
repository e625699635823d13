import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stored_caches import NAMES, assert_equal, filled
from tiny_models import prompt

from videonsa.models.cache import VideoNSACache
from videonsa.models.growing import ROOM
from videonsa.models.stored_cache import tensor_files
from videonsa.models.stored_cache.load import load_cache
from videonsa.models.stored_cache.save import save_cache


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_cache_is_the_saved_one_bit_by_bit_and_goes_on_alike(name, tmp_path):
    one = filled(name)
    saved = save_cache(tmp_path / "a", one.cache, one.model, method=one.method)
    loaded = load_cache(tmp_path / "a", one.model, method=one.method)
    assert_equal(loaded.cache, one.cache)
    assert torch.equal(one.logits(loaded.cache), one.logits(one.cache))
    assert loaded.notes == ()
    assert saved.num_bytes == loaded.num_bytes
    files = sum(path.stat().st_size for path in (tmp_path / "a").glob("*.safetensors"))
    assert files == saved.num_bytes
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_every_file_is_one_of_safetensors(tmp_path):
    one = filled("a padded batch")
    save_cache(tmp_path / "a", one.cache, one.model)
    found = load_file(tmp_path / "a" / "layer-001.safetensors")
    assert torch.equal(found["keys"], one.cache.layers[1].keys.transpose(1, 2))
    assert torch.equal(found["values"], one.cache.layers[1].values.transpose(1, 2))
    tokens = load_file(tmp_path / "a" / "tokens.safetensors")
    assert torch.equal(tokens["0.vision_mask"], one.cache.tokens.vision_mask)


def test_what_the_caller_adds_comes_back(tmp_path):
    one = filled("empty")
    tensors = {
        "waiting": torch.randn(3, 5).bfloat16().T,
        "none": torch.empty(0, 4),
        "one": torch.tensor(2.5),
    }
    state = {"times": (0.1, 1 / 3), "text": "\u00e9\n", "deep": {"a": None}}
    save_cache(tmp_path / "a", one.cache, one.model, state=state, tensors=tensors)
    loaded = load_cache(tmp_path / "a", one.model)
    assert loaded.state == state | {"times": [0.1, 1 / 3]}
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("precision", ["exact", "int8"])
def test_many_pieces_are_what_one_is(precision, tmp_path, monkeypatch):
    one = filled("a padded batch")
    save_cache(tmp_path / "a", one.cache, one.model, precision=precision)
    whole = load_cache(tmp_path / "a", one.model).cache
    monkeypatch.setattr(tensor_files, "PIECE_ON_CPU", 300)
    pieces = load_cache(tmp_path / "a", one.model).cache
    assert_equal(pieces, whole)
    save_cache(tmp_path / "b", one.cache, one.model, precision=precision)
    assert len(list(tensor_files.pieces_of(one.cache.layers[0].keys.transpose(1, 2)))) > 10
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    for name in names if precision == "exact" else ["tokens.safetensors"]:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    for found, wanted in zip(
        load_cache(tmp_path / "b", one.model).cache.layers, whole.layers, strict=True
    ):
        torch.testing.assert_close(found.keys, wanted.keys, atol=0.02, rtol=0)


@torch.no_grad()
def test_a_loaded_cache_grows_where_it_was_read_to_and_is_cropped_and_forked(tmp_path):
    one = filled("in chunks that cut frames")
    save_cache(tmp_path / "a", one.cache, one.model)
    loaded = load_cache(tmp_path / "a", one.model).cache
    memory = [layer.keys.data_ptr() for layer in loaded.layers]
    for token in range(40, 45):
        one.model(torch.tensor([[token]]), past_key_values=loaded)
    assert [layer.keys.data_ptr() for layer in loaded.layers] == memory
    twin = loaded.fork()
    loaded.crop(-5)
    assert_equal(loaded, one.cache)
    one.model(**prompt(2, seed=1), past_key_values=loaded)
    one.model(**prompt(2, seed=1), past_key_values=one.cache)
    assert_equal(loaded, one.cache)
    assert twin.get_seq_length() == loaded.get_seq_length() - prompt(2)["input_ids"].shape[1] + 5


@torch.no_grad()
def test_there_is_room_for_as_many_tokens_as_are_asked_for(tmp_path):
    one = filled("in chunks that cut frames")
    save_cache(tmp_path / "a", one.cache, one.model)
    loaded = load_cache(tmp_path / "a", one.model, spare=ROOM + 20).cache
    memory = loaded.layers[0].keys.data_ptr()
    one.model(torch.full((1, ROOM + 20), 40), past_key_values=loaded)
    assert loaded.layers[0].keys.data_ptr() == memory


@torch.inference_mode()
def test_a_cache_loaded_in_inference_mode_grows_outside_of_it(tmp_path):
    one = filled("in chunks that cut frames")
    save_cache(tmp_path / "a", one.cache, one.model)
    loaded = load_cache(tmp_path / "a", one.model).cache
    memory = loaded.layers[0].keys.data_ptr()
    with torch.inference_mode(mode=False), torch.no_grad():
        one.model(torch.tensor([[40]]), past_key_values=loaded)
    assert loaded.layers[0].keys.data_ptr() == memory


@pytest.mark.parametrize("name", [name for name in NAMES if name != "empty"])
def test_8_bits_change_the_next_logits_by_less_than_two_thousandths(name, tmp_path):
    one = filled(name)
    exact = save_cache(tmp_path / "a", one.cache, one.model, method=one.method)
    small = save_cache(tmp_path / "a", one.cache, one.model, method=one.method, precision="int8")
    assert small.num_bytes < exact.num_bytes
    loaded = load_cache(tmp_path / "a", one.model, method=one.method).cache
    assert loaded.layers[0].keys.dtype == one.cache.layers[0].keys.dtype
    found, wanted = one.logits(loaded).float(), one.logits(one.cache).float()
    assert 0 < (found - wanted).norm() / wanted.norm() < (0.01 if name == "bfloat16" else 2e-3)


def test_8_bits_take_about_half_the_bytes_of_bfloat16(tmp_path):
    cache, model = VideoNSACache(), filled("empty").model
    rows = torch.randn(1, 4, 2000, 128).bfloat16()
    cache.update(rows, rows, 0)
    exact = save_cache(tmp_path / "a", cache, model)
    small = save_cache(tmp_path / "b", cache, model, precision="int8")
    assert small.num_bytes < 0.52 * exact.num_bytes


@pytest.mark.slow
def test_a_killed_save_leaves_the_folder_of_before_or_none():
    script = Path(__file__).parent / "kill_saves.py"
    done = subprocess.run(
        [sys.executable, script, "8"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "8 killed" in done.stdout
