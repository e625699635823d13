import pytest
import torch
from tiny_models import IMAGE, VIDEO, qwen

from videonsa.errors import UsageError
from videonsa.models.rope import TokenType, mrope_position_ids

T, I, V = TokenType  # noqa: E741


def ids_of(types, grids, times=(), **options):
    options = {"tokens_per_second": 2, "merge_size": 2} | options
    ids, following = mrope_position_ids(torch.tensor(types), grids, times, **options)
    assert ids.dtype == torch.int64
    return ids.tolist(), following


def test_text_advances_all_ids_together_from_start():
    ids, following = ids_of([T] * 4, [], start=7)
    assert ids == [[7, 8, 9, 10]] * 3
    assert following == 11


def test_video_ids_written_out_by_hand():
    # Text 0, 1; video at p = 2, 1.5 s a temporal patch, 1 x 2 merged tokens a frame; text after it
    # at max + 1 = 2 + floor(2 * 1.5 * 2) + 1 = 9.
    ids, following = ids_of([T, T, *[V] * 6, T, T], [(3, 2, 4)], [(0.0, 1.5, 3.0)])
    assert ids == [
        [0, 1, 2, 2, 5, 5, 8, 8, 9, 10],
        [0, 1, 2, 2, 2, 2, 2, 2, 9, 10],
        [0, 1, 2, 3, 2, 3, 2, 3, 9, 10],
    ]
    assert following == 11


def test_image_ids_written_out_by_hand():
    # 2 x 3 merged tokens at p = 1; its largest id is the last column, 1 + 2.
    ids, following = ids_of([T, *[I] * 6, T], [(1, 4, 6)])
    assert ids == [
        [0, 1, 1, 1, 1, 1, 1, 4],
        [0, 1, 1, 1, 2, 2, 2, 4],
        [0, 1, 2, 3, 1, 2, 3, 4],
    ]
    assert following == 5


def test_half_second_patches_and_irregular_times_are_floored_not_truncated_to_seconds():
    ids, _ = ids_of([V] * 4, [(4, 2, 2)], [(10.0, 10.5, 11.0, 11.5)])
    assert ids[0] == [0, 1, 2, 3]  # 4 fps: transformers 5.17 gives 0 for all
    ids, _ = ids_of([V] * 5, [(5, 2, 2)], [(0.3, 0.79, 0.8, 3.2, 3.31)])
    assert ids[0] == [0, 0, 1, 5, 6]  # floor(2 * (0, .49, .5, 2.9, 3.01))


def test_text_after_long_video_starts_after_the_maximum():
    types = [T] * 5 + [V] * (200 * 16) + [T]
    ids, following = ids_of(types, [(200, 8, 8)], [[float(i) for i in range(200)]])
    assert (ids[0][5], ids[0][-2], ids[0][-1], following) == (5, 403, 404, 405)


def test_released_temporal_ids():
    times = [(0.0, 1.6, 3.2, 4.8)]
    types, grid = [V] * 4, [(4, 2, 2)]
    assert ids_of(types, grid, times)[0][0] == [0, 3, 6, 9]
    assert ids_of(types, grid, times, temporal_ids="truncated")[0][0] == [0, 2, 4, 6]
    assert ids_of(types, grid, times, temporal_ids="fixed")[0][0] == [0, 2, 4, 6]
    half = [(0.0, 0.5, 1.0, 1.5)]
    assert ids_of(types, grid, half, temporal_ids="truncated")[0][0] == [0, 0, 0, 0]
    summed = [(0.0, 1.0, 2.0, 2.9999999999999996)]
    assert ids_of(types, grid, summed, temporal_ids="truncated")[0][0] == [0, 2, 4, 6]


def test_adjacent_segments_and_thousands_of_text_runs():
    ids, _ = ids_of([I, V, V, I], [(1, 2, 2), (2, 2, 2), (1, 2, 2)], [(0.0, 1.0)])
    assert ids == [[0, 1, 3, 4], [0, 1, 1, 4], [0, 1, 1, 4]]
    many = 3000
    ids, following = ids_of([V, T] * many, [(1, 2, 2)] * many, [(0.0,)] * many)
    assert ids == [list(range(2 * many))] * 3
    assert following == 2 * many


def test_equals_transformers_where_that_is_right():
    """One second a patch, and a spatial extent as large as the temporal one."""
    types = [T, *[V] * 12, T, *[I] * 6, T, T]
    ids = torch.tensor([[5 if t == T else (VIDEO if t == V else IMAGE) for t in types]])
    theirs, deltas = qwen().model.get_rope_index(
        ids,
        torch.tensor([types]),
        image_grid_thw=torch.tensor([[1, 4, 6]]),
        video_grid_thw=torch.tensor([[1, 6, 8]]),
        second_per_grid_ts=[1.0],
    )
    ours, following = mrope_position_ids(
        torch.tensor(types), [(1, 6, 8), (1, 4, 6)], [(0.0,)], tokens_per_second=2, merge_size=2
    )
    assert torch.equal(ours, theirs[:, 0])
    assert following == len(types) + int(deltas)


@pytest.mark.parametrize(
    ("types", "grids", "times", "message"),
    [
        ([V] * 3, [(2, 2, 2)], [(0.0, 1.0)], "3 vision tokens"),
        ([V], [(2, 2, 2)], [(0.0, 1.0)], "describes 2 tokens"),
        ([V, T, V], [(2, 2, 2)], [(0.0, 1.0)], "is shorter"),
        ([I, V], [(2, 2, 2)], [(0.0, 1.0)], "is shorter"),
        ([V], [(0, 2, 2)], [()], "describes 0 tokens"),
        ([V], [(1, 2, 2)], [], "no entry"),
        ([V], [(1, 2, 2)], [(0.0,), (0.0,)], "more entries"),
        ([V] * 2, [(2, 2, 2)], [(0.0,)], "want 2 finite seconds"),
        ([V] * 2, [(2, 2, 2)], [(0.0, float("nan"))], "want 2 finite seconds"),
        ([V] * 2, [(2, 2, 2)], [(1.0, 0.5)], "decreases"),
    ],
)
def test_what_does_not_match_is_refused(types, grids, times, message):
    with pytest.raises(UsageError, match=message):
        ids_of(types, grids, times)


@pytest.mark.parametrize("tokens_per_second", [2, 4])
def test_no_id_is_one_too_low_where_the_first_frame_is_not_at_0(tokens_per_second):
    """17,600 ids of frames a second apart whose times are sums of binary fractions."""
    for tenths in range(1, 45):
        times = [tenths / 10 + i / tokens_per_second for i in range(200)]
        ids, _ = ids_of([V] * 200, [(200, 2, 2)], [times], tokens_per_second=tokens_per_second)
        assert ids[0] == list(range(200)), tenths


def test_rounding_before_the_floor_lifts_nothing_that_is_below():
    ids, _ = ids_of([V] * 3, [(3, 2, 2)], [(0.0, 0.49999, 0.999)])
    assert ids[0] == [0, 0, 1]
