import pytest
from conftest import TOKENIZER
from small_manifest import record, write_manifest

from videonsa.data.dataset import VideoDataset
from videonsa.data.held_out import held_out_batches

COUNT = 7


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    records = [record(f"r{i}", turns=3) for i in range(COUNT)]
    path = tmp_path_factory.mktemp("held_out") / "m.parquet"
    return VideoDataset(write_manifest(path, records, tokenizer), tokenizer=tokenizer)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_sample_counts_once_whatever_the_number_of_ranks(dataset, world_size):
    longest = int(dataset.lengths.max())
    ranks = [
        list(held_out_batches(dataset, max_tokens=longest, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {-(-COUNT // world_size)}
    counted = [
        sample
        for batches in ranks
        for each in batches
        if each.counts
        for sample in each.batch.samples
    ]
    assert sorted(counted) == list(range(COUNT))


def test_text_alone_shows_a_black_image_where_all_ranks_use_the_tower(dataset):
    for shows in (False, True):
        batches = held_out_batches(dataset, max_tokens=512, always_vision=shows)
        assert {bool(each.batch.images) for each in batches} == {shows}


def test_batches_are_the_same_at_every_call(dataset):
    calls = [held_out_batches(dataset, max_tokens=512) for _ in range(2)]
    first, second = ([each.batch.samples for each in call] for call in calls)
    assert first == second


@pytest.mark.parametrize("world_size", [1, 2])
def test_at_most_so_many_samples_count_but_one_batch_at_least(dataset, world_size):
    two = 2 * int(dataset.lengths.max())
    every = [each.batch.samples for each in held_out_batches(dataset, max_tokens=two)]
    for most, expected in ((1, every[:1]), (4, every[:2]), (100, every)):
        counted = [
            each.batch.samples
            for rank in range(world_size)
            for each in held_out_batches(
                dataset, max_tokens=two, most_samples=most, rank=rank, world_size=world_size
            )
            if each.counts
        ]
        assert sorted(counted) == sorted(expected)
