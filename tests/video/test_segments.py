import pytest

from videonsa.video.segments import (
    LEAST_PACKETS,
    MOST_SEGMENTS,
    Cut,
    cut_layout,
    keyframe_layout,
    nearest,
    whole_layout,
)


def cuts_every(seconds, *, count, packets=100):
    return [Cut(pts=i, time=i * seconds, size=1, packet=i * packets) for i in range(count)]


def laid_out(cuts, targets, *, packets=100):
    return cut_layout(cuts, targets, num_packets=packets * len(cuts), tolerance=1e-3).segments


def test_only_groups_that_hold_a_target_are_in_a_segment():
    segments = laid_out(cuts_every(1.0, count=10), [0.5, 3.2, 3.9, 9.9])
    assert [(s.begin, s.end, s.first, s.last) for s in segments] == [
        (0, 1, 0, 1),
        (3, 4, 1, 3),
        (9, 10, 3, 4),
    ]


def test_a_keyframe_within_the_tolerance_after_a_target_is_on_screen_at_it():
    (segment,) = laid_out(cuts_every(1.0, count=3), [0.9995])
    assert segment.begin == 1


def test_targets_before_the_first_keyframe_belong_to_the_beginning_of_the_file():
    cuts = [Cut(pts=5, time=5.0, size=1, packet=50), Cut(pts=9, time=9.0, size=1, packet=90)]
    segments = laid_out(cuts, [0.0, 9.0], packets=50)
    assert [(s.begin, s.packets) for s in segments] == [(0, 90), (1, 10)]


@pytest.mark.parametrize("packets", [1, 12, 250, 5000])
def test_segments_hold_every_target_once_and_are_neither_small_nor_many(packets):
    cuts = cuts_every(0.4, count=3000, packets=packets)
    targets = [i / 7 for i in range(7 * 1200)]
    segments = laid_out(cuts, targets, packets=packets)
    assert [s.first for s in segments[1:]] == [s.last for s in segments[:-1]]
    assert (segments[0].first, segments[-1].last) == (0, len(targets))
    assert all(s.packets >= LEAST_PACKETS for s in segments[:-1])
    assert len(segments) <= MOST_SEGMENTS + 1


def test_a_million_times_are_laid_out_quickly_and_repeated_ones_stay_together():
    segments = laid_out(cuts_every(1.0, count=10), [0.5] * 10**6)
    assert [(s.first, s.last) for s in segments] == [(0, 10**6)]


def test_nearest_takes_the_earlier_of_two():
    assert [nearest([0.0, 2.0, 5.0], at) for at in (-1, 0.9, 1.0, 1.1, 3.5, 9)] == [
        0,
        0,
        0,
        1,
        1,
        2,
    ]


def test_keyframes_nearest_to_the_targets_are_taken_once_each():
    layout = keyframe_layout(cuts_every(2.0, count=5), [0.0, 0.5, 1.5, 6.9, 7.5, 30.0])
    assert layout.targets == (0.0, 2.0, 6.0, 8.0)
    assert [s.begin for s in layout.segments] == [0, 1, 3, 4]
    assert layout.num_packets == 4


def test_the_whole_layout_is_one_segment_with_all_targets():
    layout = whole_layout([0.0, 1.0], problem="it is broken")
    assert [(s.begin, s.first, s.last) for s in layout.segments] == [(0, 0, 2)]
    assert layout.cuts == ()
