import pytest
import torch
from accelerate import cpu_offload
from stored_caches import filled
from tiny_models import SPEC, tiny

from videonsa.models.checkpoints.quantised import quantise
from videonsa.models.methods import NSA
from videonsa.models.stored_cache import fingerprint as module
from videonsa.models.stored_cache.fingerprint import differences, fingerprint
from videonsa.models.stored_cache.load import load_cache
from videonsa.models.stored_cache.save import save_cache


def test_it_is_the_same_for_the_same_weights_and_json_keeps_it():
    assert fingerprint(tiny()) == fingerprint(tiny())
    assert list(differences(fingerprint(tiny()), fingerprint(tiny()))) == []


@pytest.mark.parametrize("name", ["lm_head.weight", "model.visual.blocks.0.attn.qkv.bias"])
def test_training_of_any_tensor_changes_it(name):
    model, before = tiny(), fingerprint(tiny())
    with torch.no_grad():
        dict(model.named_parameters())[name].mul_(1.01).add_(1e-3)
    assert list(differences(before, fingerprint(model))) == ["other weights"]


def test_offloaded_weights_are_the_same_and_caches_go_where_their_layers_compute(tmp_path):
    one = filled("in chunks that cut frames")
    before = fingerprint(one.model)
    save_cache(tmp_path / "a", one.cache, one.model)
    wanted = one.logits(one.cache)
    cpu_offload(one.model, execution_device=torch.device("cpu"))
    assert one.model.lm_head.weight.is_meta
    assert fingerprint(one.model) == before
    loaded = load_cache(tmp_path / "a", one.model)
    assert torch.equal(one.logits(loaded.cache), wanted)


def test_quantised_weights_are_others():
    model, before = tiny(), fingerprint(tiny())
    quantise(model, "int8", torch.device("cpu"))
    after = fingerprint(model)
    assert list(differences(before, after)) == ["other weights"]
    assert fingerprint(model) == after


def test_what_changes_positions_or_attention_is_named():
    model, before = tiny(), fingerprint(tiny())
    model.config.video_token_id = 99
    model.config.vision_config.tokens_per_second = 4
    after = fingerprint(model, method=NSA(SPEC.with_options(num_selected_blocks=2)))
    assert list(differences(before, after)) == [
        "spec.num_selected_blocks 3, now 2",
        "tokens.video_token_id 11, now 99",
        "vision.tokens_per_second 2, now 4",
    ]


def test_weights_are_gathered_once_for_each_dtype(monkeypatch):
    model, calls = tiny(), []
    gather = torch.cat
    monkeypatch.setattr(
        module.torch, "cat", lambda parts: calls.append(len(parts)) or gather(parts)
    )
    fingerprint(model)
    assert calls == [len(model.state_dict())]


def test_values_are_taken_from_all_columns_of_a_matrix():
    model = tiny()
    weight = torch.zeros(1024, 512)
    model.state_dict = lambda: {"weight": weight}
    before = fingerprint(model)
    weight[:, 1::2] = 1
    odd = fingerprint(model)
    weight[:, 1::2], weight[:, ::2] = 0, 1
    assert len({one["weights"] for one in (before, odd, fingerprint(model))}) == 3
