import pytest

from videonsa.data.sampler import PackSampler
from videonsa.train.settings import OptimizerSettings
from videonsa.train.stream import run_length


def length(num_samples, *, ranks=1, **settings):
    optimizer = OptimizerSettings(**settings)
    batch_size = optimizer.batch_size if optimizer.batch_of == "samples" else None
    sampler = PackSampler(
        [50] * num_samples, max_tokens=100, batch_size=batch_size, world_size=ranks
    )
    return run_length(optimizer, sampler)


@pytest.mark.parametrize("batch_of", ["samples", "sequences"])
def test_an_epoch_of_one_pack_is_an_epoch(batch_of):
    assert length(2, batch_of=batch_of)[::2] == (1, 1)


def test_the_last_step_of_sequences_has_what_is_left():
    assert length(80, batch_of="sequences") == (2, 32, 40)
    assert length(80, batch_of="sequences", epochs=2) == (3, 32, 80)
    assert length(80, batch_of="sequences", ranks=4) == (2, 8, 10)


def test_steps_of_samples_are_as_many_as_the_samples_make():
    assert length(320) == (10, 16, 160)
    assert length(320, ranks=4) == (10, 4, 40)
    assert length(320, epochs=3).steps == 30


def test_stated_steps_are_whole():
    assert length(80, batch_of="sequences", steps=7) == (7, 32, 7 * 32)
    assert length(80, steps=7) == (7, 14, 7 * 14)
