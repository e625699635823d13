"""The query-key pairs that a cache counts are those that attention computed."""

import pytest
import torch
from tiny_models import VIDEO, left_padded, prompt, tiny

from videonsa.models.cache import VideoNSACache
from videonsa.models.computed import ComputedPairs
from videonsa.models.costs import AttentionCall
from videonsa.models.decoding.steps import StaticSteps
from videonsa.models.methods import Attended, AttentionMethod, Dense, nsa_method
from videonsa.models.methods.pairs import causal_pairs, nsa_pairs
from videonsa.models.recorder.protocol import Recorder
from videonsa.models.step import StepTokens
from videonsa.ops.spec import NSASpec

FIXED = NSASpec(block_size=5, num_selected_blocks=2, window_size=7)
FRAME = NSASpec(block_size="frame", num_selected_blocks=3, window_size=3)


class Counting(Recorder):
    """Counts pairs one by one, by the selection that the kernels tell."""

    wants_branches = True

    def __init__(self, inputs):
        self.is_vision = (inputs["input_ids"][0] == VIDEO).tolist()
        self.pairs = 0

    def record(self, layer, q, k, attended):
        if layer:
            return
        size = 4 if attended.spec.block_size == "frame" else attended.spec.block_size
        selected = attended.result.selected_blocks[0, :, 0].tolist()
        rank = -1
        for row, is_vision in enumerate(self.is_vision):
            if not is_vision:
                self.pairs += row + 1
                continue
            rank += 1
            branches = {
                "compressed": sum(end - 1 <= rank for end in range(size, rank + 2, size)),
                "selected": sum(
                    key <= rank
                    for block in selected[row]
                    if block >= 0
                    for key in range(block * size, (block + 1) * size)
                ),
                "window": min(rank + 1, attended.spec.window_size),
            }
            self.pairs += sum(branches[name] for name in attended.spec.branches)


@pytest.mark.parametrize("spec", [FIXED, FRAME, FIXED.with_options(branches=("selected",))])
def test_nsa_counts_what_its_branches_attended_to(spec):
    model, inputs = tiny(spec=spec), prompt(6)
    counting, cache = Counting(inputs), VideoNSACache()
    model(**inputs, past_key_values=cache, method=nsa_method(spec), recorder=counting)
    assert cache.computed.total() == counting.pairs * len(cache.layers)
    chunked = VideoNSACache()
    with torch.no_grad():
        model(**inputs, past_key_values=chunked, method=nsa_method(spec), rows_per_chunk=7)
    assert chunked.computed.total() == cache.computed.total()


def test_a_plan_counts_a_prompt_as_it_is_read_later():
    spec, num_layers = FRAME, 2
    model, inputs = tiny(spec=spec), prompt(6)
    ids = torch.cat([inputs["input_ids"][:, inputs["input_ids"][0] == VIDEO], torch.ones(1, 9)], 1)
    inputs["input_ids"], cache = ids.long(), VideoNSACache()
    model(**inputs, past_key_values=cache, method=nsa_method(spec))
    call = AttentionCall(
        prompt_tokens=ids.shape[1],
        chunk_tokens=ids.shape[1],
        video_tokens=ids.shape[1] - 9,
        num_frames=6,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        value_bytes=4,
    )
    assert nsa_method(spec).prompt_pairs(call) == cache.computed.total()
    assert Dense().prompt_pairs(call) == num_layers * causal_pairs(ids.shape[1])


def test_dense_pairs_follow_the_cache_wherever_it_is_cut():
    model, inputs, cache = tiny(), prompt(5), VideoNSACache()
    model(**inputs, past_key_values=cache, method="dense")
    length, num_layers = cache.get_seq_length(), len(cache.layers)
    for kept in (length, length - 3, 5):
        cache.keep(kept)
        assert cache.computed.total() == pytest.approx(num_layers * causal_pairs(kept))
    fork = cache.fork()
    for _ in range(3):
        model(input_ids=torch.tensor([[40]]), past_key_values=fork, method="dense")
    assert fork.computed.total() == pytest.approx(num_layers * causal_pairs(8))
    assert cache.computed.total() == pytest.approx(num_layers * causal_pairs(5))


def test_text_that_static_steps_read_is_counted_once_it_is_kept():
    model, inputs, cache = tiny(), prompt(5), VideoNSACache()
    with torch.inference_mode():
        model(**inputs, past_key_values=cache, method="dense")
        length = cache.get_seq_length()
        steps = StaticSteps(model, cache, batch=1, captures=False)
        steps.begin(32)
        steps.read([[40, 41, 42]])
        assert cache.computed.total() == len(cache.layers) * causal_pairs(length)
        steps.keep(3)
    assert cache.computed.total() == len(cache.layers) * causal_pairs(length + 3)


def test_a_batch_counts_all_samples_and_is_not_known_once_they_are_chosen():
    model, cache = tiny(), VideoNSACache()
    inputs = left_padded([prompt(3), prompt(2)])
    model(**inputs, past_key_values=cache, method="dense")
    length = cache.get_seq_length()
    assert cache.computed.total() == 2 * len(cache.layers) * causal_pairs(length)
    cache.batch_select_indices(torch.tensor([1]))
    assert cache.computed is None


@pytest.mark.gpu
def test_counting_never_waits_for_the_gpu():
    def tokens(device):
        mask = torch.tensor([[False] * 3 + [True] * 16 + [False] * 2], device=device)
        return StepTokens(
            num_tokens=12,
            has_vision=True,
            vision_mask=mask,
            attention_mask=None,
            position_ids=torch.zeros(3, 1, 12, dtype=torch.int64, device=device),
            frame_sizes=lambda: [4] * 4,
        )

    wanted = int(nsa_pairs(tokens("cpu"), FRAME))
    on_gpu, counted = tokens("cuda"), ComputedPairs()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            counted.add(21, nsa_pairs(on_gpu, FRAME))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counted.total() == 2 * wanted


class Measured(AttentionMethod):
    """Tells how much it computed, on the device."""

    name = "measured"

    def attend(self, layer, hidden, q, k, v, step):
        pairs = torch.tensor(10 * q.shape[2] + 2)  # not the same number for each head
        return Attended(Dense().attend(layer, hidden, q, k, v, step), pairs=pairs)


def test_what_a_method_measured_counts_instead_per_query_head():
    model, inputs, cache = tiny(), prompt(3), VideoNSACache()
    model(**inputs, past_key_values=cache, method=Measured())
    heads = model.config.text_config.num_attention_heads
    assert cache.computed.total() == len(cache.layers) * (10 * heads + 2) / heads
