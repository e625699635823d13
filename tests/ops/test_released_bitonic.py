import pytest
import torch

from videonsa.ops.bitonic import bitonic_top


def compare_exchange(slots, left, right, descending):
    """One wire pair of the network: equal pairs swap in the descending direction."""
    if (slots[left][0] > slots[right][0]) != descending:
        slots[left], slots[right] = slots[right], slots[left]


def run_stage(slots, stage, is_descending):
    for distance in (2**step for step in reversed(range(stage))):
        for i in range(64):
            if not i & distance:
                compare_exchange(slots, i, i + distance, is_descending(i))


def plain_network(importance, current):
    """The order of one row, one compare-exchange at a time."""
    running = []
    for first in range(0, current + 1, 64):
        slots = [
            (importance[c], c + 1) if c <= current else (0.0, 0) for c in range(first, first + 64)
        ]
        for stage in range(1, 6):
            run_stage(slots, stage, lambda i, stage=stage: bool((i >> stage) & 1))
        run_stage(slots, 6, lambda i, first=first: first == 0)
        if first:
            slots[:32] = running[:32]
            run_stage(slots, 6, lambda i: True)
        running = slots
    return [index - 1 for _, index in running[:32]]


@pytest.mark.parametrize("num_blocks", [1, 5, 64, 65, 200])
@pytest.mark.parametrize("levels", [1, 3, 1000], ids=["all_tied", "many_ties", "few_ties"])
def test_order_is_that_of_the_network(num_blocks, levels):
    generator = torch.Generator().manual_seed(num_blocks + levels)
    current = torch.randperm(num_blocks, generator=generator)[:12]
    # Level 0 is importance 0: a real block that ties with the empty slots.
    importance = torch.randint(0, levels, (len(current), 4, num_blocks), generator=generator) / 7
    order = bitonic_top(importance, current)
    assert order.shape == (len(current), 4, 32)
    for row, last in enumerate(current.tolist()):
        for group in range(4):
            padded = [*importance[row, group].tolist(), *([0.0] * 64)]
            assert order[row, group].tolist() == plain_network(padded, last)


def test_distinct_importances_come_in_descending_order():
    importance = torch.rand(20, 4, 300, generator=torch.Generator().manual_seed(0)) + 0.01
    current = torch.arange(100, 300, 10)
    order = bitonic_top(importance, current)
    for row, last in enumerate(current.tolist()):
        expected = importance[row, :, : last + 1].sort(dim=-1, descending=True).indices[:, :32]
        assert torch.equal(order[row], expected)


def test_ties_do_not_come_in_index_order():
    """Twelve equal past blocks and the current one: what a text row of the published code gets."""
    importance = torch.full((1, 1, 13), 0.25)
    importance[..., 12] = 16
    order = bitonic_top(importance, torch.tensor([12]))[0, 0]
    assert order[0] == 12
    assert sorted(order[:13].tolist()) == list(range(13))
    assert order[:13].tolist() != [12, *range(12)]
    assert (order[13:] == -1).all()


def test_blocks_after_the_current_are_no_candidates():
    importance = torch.ones(1, 4, 100)
    importance[..., 50:] = 5
    order = bitonic_top(importance, torch.tensor([49]))
    assert order.max() == 49
    assert torch.equal(order, bitonic_top(importance[..., :50], torch.tensor([49])))
