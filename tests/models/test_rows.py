import pytest
import torch
from tiny_models import VIDEO, tiny

from videonsa.errors import UsageError
from videonsa.models.rope import TokenType
from videonsa.models.rows import PositionRules, describe_rows, repeat_vision, vision_inputs

T, I, V = TokenType  # noqa: E741
RULES = PositionRules(tokens_per_second=2, merge_size=2, temporal_ids="exact")


def test_frames_and_next_positions_of_padded_samples():
    types = torch.tensor([[T, T, V, V, T, I], [V, I, I, T, T, T]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()
    vision = vision_inputs(
        torch.tensor([[1, 2, 2], [1, 2, 4]]),
        torch.tensor([[2, 2, 2], [1, 2, 2]]),
        [(0.0, 2.5), (7.0,)],
        None,
        temporal_ids="exact",
    )
    rows = describe_rows(types, mask, vision, start=[100, 0], rules=RULES)
    assert rows.frame_sizes == [[1, 1, 1], [1, 2]]
    # floor(2 * 2.5) = 5: the second frame is at 101 + 5, text and image after the maximum.
    assert rows.position_ids[0].tolist() == [[0, 100, 101, 106, 107, 108], [0, 1, 1, 3, 0, 0]]
    assert rows.next_positions.tolist() == [[100, 101, 102, 107, 108, 109], [1, 2, 3, 4, 4, 4]]
    assert rows.vision_mask.tolist() == (types != T).tolist()
    assert rows.has_vision
    assert rows.is_padded


def test_fixed_temporal_ids_need_no_times():
    vision = vision_inputs(None, torch.tensor([[3, 2, 2]]), None, None, temporal_ids="fixed")
    assert vision.video_times == [[0.0, 1.0, 2.0]]


def test_repeated_samples_keep_their_own_images_and_videos():
    types = torch.tensor([[V, V, I, T], [I, T, I, T], [T, T, T, T], [T, V, T, V]])
    pixels = torch.arange(12.0)[:, None]
    given = {
        "image_grid_thw": torch.tensor([[1, 2, 2]] * 3),
        "pixel_values": pixels,
        "video_grid_thw": torch.tensor([[2, 2, 2], [1, 2, 2], [1, 2, 2]]),
        "pixel_values_videos": torch.arange(16.0)[:, None],
        "video_times": [(0.0, 1.0), (2.0,), (3.0,)],
        "second_per_grid_ts": None,
    }
    twice = repeat_vision(given, types, repeats=2, merge_size=2)
    first, second, third = pixels.split(4)
    expected = torch.cat([first, first, second, third, second, third])
    assert torch.equal(twice["pixel_values"], expected)
    assert twice["video_times"] == [(0.0, 1.0)] * 2 + [(2.0,), (3.0,)] * 2
    assert twice["video_grid_thw"][:, 0].tolist() == [2, 2, 1, 1, 1, 1]
    assert len(twice["pixel_values_videos"]) == 2 * 16


def test_images_alone_run_through_nsa():
    model = tiny()
    ids = torch.tensor([[20, *[10] * 6, 21, *[10] * 4, 22]])
    out = model(
        input_ids=ids,
        pixel_values=torch.randn(40, 1176),
        image_grid_thw=torch.tensor([[1, 4, 6], [1, 4, 4]]),
    )
    assert out.past_key_values.tokens.frame_sizes == [[6, 4]]
    assert out.logits.isfinite().all()


POSITIONS = torch.arange(64).expand(3, 1, 64)


@pytest.mark.parametrize("grid", [(32, 4, 4), (8, 4, 4), (0, 4, 4)])
def test_grids_are_checked_against_the_tokens_also_beside_given_positions(grid):
    """64 tokens with a grid of 128, of 32, and of none."""
    ids = torch.full((1, 64), VIDEO)
    with pytest.raises(UsageError, match="tokens"):
        tiny()(
            input_ids=ids,
            inputs_embeds=torch.zeros(1, 64, 64),
            position_ids=POSITIONS,
            video_grid_thw=torch.tensor([grid]),
            second_per_grid_ts=[1.0],
        )


def test_grids_and_given_positions_that_fit_the_tokens_are_taken():
    types = torch.full((1, 64), V)
    vision = vision_inputs(None, torch.tensor([[16, 4, 4]]), None, [1.0], temporal_ids="exact")
    rows = describe_rows(
        types, types.bool(), vision, start=[0], rules=RULES, position_ids=POSITIONS
    )
    assert rows.frame_sizes == [[4] * 16]
    assert torch.equal(rows.position_ids, POSITIONS)
