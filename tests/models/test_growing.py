"""Rows that grow in place, and what a fork of them may count on."""

import gc

import pytest
import torch

from videonsa.models.growing import ROOM, GrowingRows

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def numbers(start, stop):
    return torch.arange(start, stop)[None]


def begun(count=4):
    rows = GrowingRows(torch.empty(0, 0, dtype=torch.int64))
    rows.append(numbers(0, count))
    return rows


def address(rows):
    return rows.memory.untyped_storage().data_ptr()


def test_rows_are_appended_in_place_while_there_is_room():
    rows = begun()
    before = address(rows)
    assert torch.equal(rows.append(numbers(4, ROOM)), numbers(0, ROOM))
    rows.append(numbers(ROOM, ROOM + 4))
    assert address(rows) == before
    rows.append(numbers(ROOM + 4, ROOM + 5))
    assert address(rows) != before
    assert torch.equal(rows.rows, numbers(0, ROOM + 5))


def test_expected_rows_get_their_room_at_once():
    rows = GrowingRows(torch.empty(0, 0))
    rows.append(numbers(0, 3), expected=1000)
    assert rows.memory.shape == (1, 1000 + ROOM)


def test_a_thousand_crops_and_appends_move_nothing():
    rows = begun()
    before = address(rows)
    for number in range(1000):
        rows.crop(number % 4)
        rows.append(numbers(100 + number, 105 + number))
        assert rows.rows[0, -5:].tolist() == list(range(100 + number, 105 + number))
        assert rows.rows.shape == (1, number % 4 + 5)
        rows.crop(number % 4)
        rows.append(numbers(0, 4 - number % 4))
    assert address(rows) == before


def test_what_others_wrote_into_reserved_memory_counts_once_it_is_said():
    rows = begun()
    rows.reserve(600)
    assert rows.memory.shape == (1, 600)
    rows.memory[0, 4:6] = torch.tensor([40, 50])
    assert torch.equal(rows.rows, numbers(0, 4))
    rows.advance(2)
    assert rows.rows[0].tolist() == [0, 1, 2, 3, 40, 50]
    before = address(rows)
    rows.reserve(600)
    assert address(rows) == before
    with pytest.raises(AssertionError, match="memory that was reserved"):
        rows.advance(595)


@pytest.mark.parametrize("grow", [lambda rows: rows.append(numbers(7, 9)), lambda r: r.reserve(9)])
def test_rows_that_a_fork_sees_are_left_alone(grow):
    rows = begun()
    twin = rows.fork()
    second = twin.fork()  # of the same memory
    rows.crop(2)
    before = address(rows)
    grow(rows)
    assert address(rows) != before
    rows.memory[:, 2:4] = 99
    assert torch.equal(twin.rows, numbers(0, 4))
    assert torch.equal(second.rows, numbers(0, 4))


def test_rows_behind_all_that_forks_see_are_written_in_place():
    rows = begun()
    twin = rows.fork()
    before = address(rows)
    rows.append(numbers(4, 6))  # behind
    rows.crop(4)
    rows.append(numbers(6, 8))
    twin.crop(1)
    rows.crop(1)
    rows.append(numbers(8, 9))
    assert address(rows) == before
    assert twin.rows.tolist() == [[0]]


def test_a_fork_that_grew_or_is_gone_sees_no_rows_any_more():
    rows = begun()
    twin, gone = rows.fork(), rows.fork()
    twin.append(numbers(4, 5))
    assert address(twin) != address(rows)
    del gone
    gc.collect()
    before = address(rows)
    rows.crop(0)
    rows.append(numbers(10, 12))
    assert address(rows) == before
    assert torch.equal(twin.rows, numbers(0, 5))


def test_with_gradients_rows_held_never_change():
    with torch.enable_grad():
        rows = begun()
        first = rows.rows
        rows.append(numbers(4, 6))
        rows.crop(4)
        rows.append(numbers(8, 9))
    assert torch.equal(first, numbers(0, 4))
    assert rows.rows.tolist() == [[0, 1, 2, 3, 8]]
    rows.crop(3)
    with torch.no_grad():
        rows.append(numbers(7, 8))
    assert torch.equal(first, numbers(0, 4))
