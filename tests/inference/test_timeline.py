"""The picture of a video along time."""

import numpy as np
import torch

from videonsa.inference.timeline import TimelineRow, draw_timeline, pool_slots, telling_frames


def test_pooling_keeps_the_sum_and_the_order() -> None:
    values = torch.arange(10.0)
    pooled = pool_slots(values, 4)
    assert pooled.tolist() == [0 + 1 + 2, 3 + 4 + 5, 6 + 7, 8 + 9]


def test_the_frame_that_differs_is_the_one_shown() -> None:
    frames = torch.full((12, 3, 4, 4), 50, dtype=torch.uint8)
    frames[7] = 255
    shown = telling_frames(frames, 3)
    assert [int(frame[0, 0, 0]) for frame in shown] == [50, 255, 50]


def test_the_highest_bar_stands_under_its_own_frame() -> None:
    frames = torch.full((16, 3, 28, 28), 128, dtype=torch.uint8)
    values = torch.zeros(8)
    values[5] = 1
    image = draw_timeline(
        frames, [0.5 * i for i in range(16)], [TimelineRow("q", "a", values)], title="t"
    )
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    orange = (pixels == torch.tensor([214, 84, 36])).all(-1)
    tall = orange.sum(0) > 10
    columns = tall.nonzero()[:, 0]
    slot = (columns - (16 + 370)) // 64
    assert slot.unique().tolist() == [5]
