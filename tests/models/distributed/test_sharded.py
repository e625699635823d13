"""Two and four processes on one sequence compute what one process does."""

import pytest
import torch
import torch.distributed as dist
from prefill_cases import FIXED, PREFILLS, generated, on, prefill
from ranks import run_ranks
from test_packed import labels_of, pack, samples
from tiny_models import SPEC, prompt, tiny

from videonsa.errors import UsageError
from videonsa.models.cache import VideoNSACache
from videonsa.models.methods import NSA, Dense
from videonsa.ops.spec import NSASpec
from videonsa.parallel.context import ContextParallelGroup


def one_sample():
    sample = prompt(9, 4, 6)
    return sample | {"labels": labels_of(sample)}


def fewer_frames_than_processes():
    sample = prompt(3)
    return sample | {"labels": labels_of(sample)}


def packed_samples():
    packed = pack(samples())
    return packed | {"labels": labels_of(packed)}


def text_only():
    ids = torch.arange(20, 40)[None]
    return {"input_ids": ids, "labels": ids}


CASES = {
    "one sample, frames": (one_sample, SPEC, "nsa"),
    "one sample, fixed blocks": (one_sample, FIXED, "nsa"),
    "a short video": (fewer_frames_than_processes, SPEC, "nsa"),
    "one sample, dense": (one_sample, SPEC, "dense"),
    "packed, frames": (packed_samples, SPEC, "nsa"),
    "packed, dense": (packed_samples, SPEC, "dense"),
    "text only": (text_only, SPEC, "nsa"),
}


def run(name, cp_group=None, *, device="cpu"):
    """Loss, logits and gradients of a case."""
    make, spec, attention = CASES[name]
    model = tiny(spec=spec).to(device)
    # The reference is exact to float32 wherever it runs; the kernels' products are not.
    method = Dense() if attention == "dense" else NSA(spec, backend="reference")
    result = model(**on(device, make()), cp_group=cp_group, use_cache=False, method=method)
    result.loss.backward()
    grads = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }
    return result.loss.detach(), result.logits.detach(), grads


def work(results, on_gpus):
    """One process: all cases, gradients summed over the processes, and all prefills."""
    dist.init_process_group("nccl" if on_gpus else "gloo")
    rank = dist.get_rank()
    device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    cp_group, found = ContextParallelGroup(), {}
    for name, (make, _, _) in CASES.items():
        loss, logits, grads = run(name, cp_group, device=device)
        for grad in grads.values():
            dist.all_reduce(grad)
        bounds = make().get("cu_seqlens", torch.tensor([0, make()["input_ids"].shape[1]]))
        rows = cp_group.shard(bounds.tolist()).rows
        found[name] = (loss, torch.tensor(rows), logits, grads)
    found |= {name: prefill(name, cp_group, device=device) for name in PREFILLS}
    found["generated"] = generated(cp_group, device=device)
    torch.save(found, results / f"{rank}.pt")


@pytest.fixture(scope="module", params=[2, 4], ids=["two processes", "four processes"])
def of_ranks(request, tmp_path_factory):
    return results_of(request.param, tmp_path_factory.mktemp("ranks"))


def results_of(num_processes, folder, *, on_gpus=False):
    """What each process found."""
    ended = run_ranks(work, folder, on_gpus, folder=folder, count=num_processes, on_gpus=on_gpus)
    assert not any(ended.statuses), ended.output
    return [torch.load(folder / f"{rank}.pt") for rank in range(num_processes)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_processes_that_share_a_sequence_give_the_loss_and_gradients_of_one(of_ranks, name):
    assert_as_one(of_ranks, name)


@pytest.mark.multi_gpu
@pytest.mark.slow
def test_gpus_that_share_a_sequence_give_the_loss_and_gradients_of_one(tmp_path):
    count = min(4, torch.cuda.device_count() // 2 * 2)
    of_gpus = results_of(count, tmp_path, on_gpus=True)
    for name in CASES:
        assert_as_one(of_gpus, name, device="cuda")
    for name in PREFILLS:
        assert_prefilled_as_one(of_gpus, name, device="cuda")


def assert_as_one(of_ranks, name, *, device="cpu"):
    loss, logits, grads = run(name, device=device)
    for rank, found in enumerate(of_ranks):
        own_loss, rows, own_logits, own_grads = _on(found[name], device)
        torch.testing.assert_close(own_loss, loss)
        torch.testing.assert_close(own_logits[0], logits[0, rows], rtol=1e-5, atol=1e-5)
        if rank == 0:
            for key, grad in grads.items():
                torch.testing.assert_close(own_grads[key], grad, rtol=1e-4, atol=1e-6, msg=key)


def _on(found, device):
    return torch.utils._pytree.tree_map(lambda x: x.to(device), found)


@pytest.mark.slow
@pytest.mark.parametrize("name", PREFILLS)
def test_every_process_ends_a_shared_prefill_as_one_process_does(of_ranks, name):
    assert_prefilled_as_one(of_ranks, name)


def assert_prefilled_as_one(of_ranks, name, *, device="cpu"):
    wanted = prefill(name, device=device)
    for found in of_ranks:
        assert found[name].keys() == wanted.keys()
        for key, value in wanted.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(found[name][key], value, rtol=1e-5, atol=1e-5, msg=key)
            else:
                assert found[name][key] == value


@pytest.mark.slow
@pytest.mark.parametrize("name", PREFILLS)
def test_all_processes_hold_the_same_bits_after_a_shared_prefill(of_ranks, name):
    first, *others = (found[name] for found in of_ranks)
    for other in others:
        assert all(torch.equal(first[key], other[key]) for key in ("logits", "keys", "values"))


@pytest.mark.slow
def test_generate_shares_its_prefill(of_ranks):
    for found in of_ranks:
        assert torch.equal(found["generated"], generated())


class Alone(ContextParallelGroup):
    """Of one process that needs no group."""

    def __init__(self):
        self.world_size, self.rank = 1, 0


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"attention_mask": torch.ones(1, 20)}, "attention_mask"),
        ({"rows_per_chunk": 4}, "rows_per_chunk"),
        ({"logits_to_keep": 1}, "logits_to_keep"),
    ],
)
def test_what_needs_all_rows_in_one_process_is_refused(beside, named):
    with pytest.raises(UsageError, match=f"cp_group with {named}"):
        tiny()(text_only()["input_ids"], cp_group=Alone(), **beside)


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"labels": torch.zeros(1, 20, dtype=torch.int64)}, "labels"),
        ({"logits_to_keep": torch.tensor([3])}, "chosen logits_to_keep"),
        ({"attention_mask": torch.ones(1, 20).index_fill(1, torch.tensor([0]), 0)}, "padding"),
        ({"input_ids": torch.arange(20, 60).view(2, 20)}, "a batch of 2"),
        ({"output_hidden_states": True}, "rows that cannot be shared: the hidden states of all"),
        (
            {"method": NSA(NSASpec(block_size=4, selection_scope="block"))},
            "selection_scope='block'",
        ),
    ],
)
def test_what_a_shared_prefill_cannot_have_is_refused(beside, named):
    ids = {"input_ids": text_only()["input_ids"]}
    arguments = {"cp_group": Alone(), "past_key_values": VideoNSACache()} | ids | beside
    with torch.no_grad(), pytest.raises(UsageError, match="cp_group and a cache with .*" + named):
        tiny()(**arguments)


def test_a_shared_prefill_with_gradients_is_refused():
    ids = text_only()["input_ids"]
    with pytest.raises(UsageError, match=r"cache with gradients \(want torch.inference_mode"):
        tiny()(ids, cp_group=Alone(), use_cache=True)


def test_a_negative_number_of_rows_of_each_process_is_refused():
    arguments = {"cp_group": Alone(), "use_cache": True, "rows_per_chunk": -1}
    with torch.no_grad(), pytest.raises(UsageError, match="rows_per_chunk=-1: want a number"):
        tiny()(text_only()["input_ids"], **arguments)


def test_a_batch_of_several_rows_is_refused():
    ids = torch.arange(20, 60).view(2, 20)
    with pytest.raises(UsageError, match=r"cp_group with a batch of 2: .* pack the samples"):
        tiny()(ids, cp_group=Alone())
