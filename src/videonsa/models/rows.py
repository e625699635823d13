"""The new rows of a forward step: their kinds, frames and positions, from ids and grids."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.rope import (
    Grid,
    TemporalIds,
    TokenType,
    mrope_position_ids,
    segment_ids,
    vision_segments,
)


class VisionInputs(NamedTuple):
    """Images and videos of a batch, each kind in order of appearance, samples concatenated."""

    image_grids: list[Grid]
    video_grids: list[Grid]
    video_times: list[Sequence[float]]
    """For each video, the seconds of the first frame of each temporal patch."""


class PositionRules(NamedTuple):
    """Arguments of `mrope_position_ids` that a model and its spec fix."""

    tokens_per_second: float
    merge_size: int
    temporal_ids: TemporalIds


class NewRows(NamedTuple):
    """T new rows of each of B samples."""

    vision_mask: Tensor  # bool [B, T]: image and video tokens
    attention_mask: Tensor  # bool [B, T]: False where padded
    position_ids: Tensor  # int64 [3, B, T]
    next_positions: Tensor  # int64 [B, T]: the id that text after each row would get
    frame_sizes: list[list[int]]
    has_vision: bool
    is_padded: bool
    lengths: list[int] | None = None
    """Rows of each sample where several are packed, B = 1."""

    def to(self, device: torch.device) -> Self:
        """The same rows with their tensors on a device."""
        return self._replace(
            vision_mask=self.vision_mask.to(device),
            attention_mask=self.attention_mask.to(device),
            position_ids=self.position_ids.to(device),
            next_positions=self.next_positions.to(device),
        )


def row_mask(input_ids: Tensor, attention_mask: Tensor | None, *, past: int) -> Tensor:
    """The columns of the attention mask for the new rows, bool `[B, T]`.

    Args:
        input_ids: int64 `[B, T]`.
        attention_mask: `[B, T]`, `[B, past + T]`, or None where nothing is padded.
        past: rows before the new ones.

    Raises:
        UsageError: a mask of another shape.
    """
    batch, length = input_ids.shape
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask.shape not in ((batch, length), (batch, past + length)):
        raise UsageError(
            f"attention_mask is {list(attention_mask.shape)}: want [{batch}, {length}], or "
            f"[{batch}, {past + length}] with the cached rows"
        )
    return attention_mask[:, -length:].bool()


def text_rows(start: Tensor, num_rows: int) -> NewRows:
    """So many text rows of each sample, none padded; nothing waits for the device.

    Args:
        start: int64 `[B]`, the position id of the first row of each.
        num_rows: T.
    """
    after = start[:, None] + torch.arange(1, num_rows + 1, device=start.device)
    return NewRows(
        vision_mask=torch.zeros_like(after, dtype=torch.bool),
        attention_mask=torch.ones_like(after, dtype=torch.bool),
        position_ids=(after - 1).expand(3, -1, -1),
        next_positions=after,
        frame_sizes=[[] for _ in start],
        has_vision=False,
        is_padded=False,
    )


def cut_rows(rows: NewRows, start: int, stop: int) -> NewRows:
    """The rows [start, stop) of new rows, with the frames that begin there."""
    vision, mask = rows.vision_mask[:, start:stop], rows.attention_mask[:, start:stop]
    kept = rows.vision_mask & rows.attention_mask
    before, until = (kept[:, :end].sum(1).tolist() for end in (start, stop))
    return NewRows(
        vision_mask=vision,
        attention_mask=mask,
        position_ids=rows.position_ids[:, :, start:stop],
        next_positions=rows.next_positions[:, start:stop],
        frame_sizes=[
            sizes[frames_begun(sizes, first) : frames_begun(sizes, last)]
            for sizes, first, last in zip(rows.frame_sizes, before, until, strict=True)
        ],
        has_vision=bool(vision.any()),
        is_padded=not bool(mask.all()),
    )


def select_rows(rows: NewRows, kept: Tensor) -> NewRows:
    """Some of the rows of one sample; a frame keeps its number, also where none of its rows stays.

    Args:
        rows: B = 1.
        kept: int64 `[K]`, ascending.
    """
    kept = kept.to(rows.vision_mask.device)
    (sizes,) = rows.frame_sizes
    is_frame = rows.vision_mask & rows.attention_mask
    frames = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
    number = is_frame[0].cumsum(0)[kept] - 1  # of each kept row, among the vision rows
    number = number[is_frame[0, kept]].cpu()
    vision, mask = rows.vision_mask[:, kept], rows.attention_mask[:, kept]
    return rows._replace(
        vision_mask=vision,
        attention_mask=mask,
        position_ids=rows.position_ids[:, :, kept],
        next_positions=rows.next_positions[:, kept],
        frame_sizes=[frames[number].bincount(minlength=len(sizes)).tolist()],
        has_vision=bool(vision.any()),
        is_padded=not bool(mask.all()),
    )


class WholePrompt(NamedTuple):
    """A prompt with all tokens of its images and videos, of which some are read."""

    ids: Tensor
    """int64 `[B, T]`."""
    kept: Tensor | None
    """int64 `[K]`, ascending: those that are read; None: all."""


def whole_prompt(
    ids: Tensor,
    vision: Sequence[tuple[int, int, Tensor | None]],
    *,
    pads: Sequence[int],
    mask: Tensor | None = None,
) -> WholePrompt:
    """Put back the tokens of images and videos that were left out.

    Args:
        ids: int64 `[1, T]` of what is read, on the CPU.
        vision: of each image and video, how many of its tokens are read, how many it has, and which
            are read (int64, ascending; None: all).
        pads: the ids of image and video tokens.
        mask: of padding, as it was given.

    Raises:
        UsageError: a batch, padding, or not as many tokens as are read of the images and videos.
    """
    if len(ids) != 1 or mask is not None:
        raise UsageError(
            f"tokens of images or videos left out in a batch of {len(ids)}, or with a mask: want "
            "one sample that is not padded"
        )
    (given,) = ids
    places = torch.isin(given, torch.tensor(list(pads))).nonzero()[:, 0]
    counts = [count for count, _, _ in vision]
    runs = places.split(counts) if sum(counts) == len(places) else ()
    if not runs or any(len(run) < 1 or run[-1] - run[0] != len(run) - 1 for run in runs):
        raise UsageError(
            f"{counts} tokens are kept of the images and videos, but the prompt has "
            f"{len(places)} in other runs: want a run of as many for each"
        )
    whole, kept = [], []
    read = length = 0
    for run, (count, total, own) in zip(runs, vision, strict=True):
        begin = int(run[0])
        before = given[read:begin]
        whole += [before, given[begin : begin + 1].expand(total)]
        first = length + len(before)
        kept.append(torch.arange(length, first))
        kept.append(first + (torch.arange(total) if own is None else own.cpu()))
        read, length = begin + count, first + total
    after = given[read:]
    kept.append(torch.arange(length, length + len(after)))
    return WholePrompt(torch.cat([*whole, after])[None], torch.cat(kept))


def compress_rows(rows: NewRows, kept: Tensor) -> NewRows:
    """The rows of one sample that the language model reads; they stand where they stood.

    As `select_rows`, but what follows a vision token stands behind those that left after it.

    Args:
        rows: of the whole prompt, B = 1.
        kept: int64 `[K]`, ascending.
    """
    kept = kept.to(rows.vision_mask.device)
    end = kept.new_tensor([rows.next_positions.shape[1]])
    is_vision = rows.vision_mask[0, kept]
    after = rows.next_positions[:, torch.where(is_vision, torch.cat([kept[1:], end]) - 1, kept)]
    return select_rows(rows, kept)._replace(next_positions=after)


def frames_begun(sizes: Sequence[int], tokens: int) -> int:
    """How many frames have their first token among the first `tokens`.

    A frame whose tokens have all left goes with the token before it.
    """
    begun = 0
    while tokens > 0 or (begun and begun < len(sizes) and not sizes[begun]):
        tokens -= sizes[begun]
        begun += 1
    return begun


def vision_inputs(
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    video_times: Sequence[Sequence[float]] | None,
    second_per_grid_ts: Sequence[float] | Tensor | None,
    *,
    temporal_ids: TemporalIds,
) -> VisionInputs:
    """Bring the vision arguments of `forward` into one form.

    Raises:
        UsageError: videos without their times, or with times given twice.
    """
    videos = _grids(video_grid_thw)
    if video_times is not None and second_per_grid_ts is not None:
        raise UsageError("video_times and second_per_grid_ts are both given: pass one of them")
    if video_times is None:
        if second_per_grid_ts is not None:
            periods = [float(period) for period in second_per_grid_ts]
        elif temporal_ids == "fixed":
            periods = [1.0] * len(videos)
        elif videos:
            raise UsageError(
                f"{len(videos)} videos without times: pass video_times (seconds of the first "
                "frame of each temporal patch) or second_per_grid_ts"
            )
        else:
            periods = []
        _check_count(periods, videos)
        video_times = [
            [i * period for i in range(grid[0])]
            for grid, period in zip(videos, periods, strict=True)
        ]
    _check_count(video_times, videos)
    return VisionInputs(_grids(image_grid_thw), videos, list(video_times))


def _check_count(times: Sequence[Any], videos: Sequence[Grid]) -> None:
    if len(times) != len(videos):
        raise UsageError(
            f"times of {len(times)} videos but {len(videos)} video grids: want one each"
        )


def _grids(grid_thw: Tensor | None) -> list[Grid]:
    if grid_thw is None:
        return []
    return [(int(t), int(h), int(w)) for t, h, w in grid_thw.tolist()]


def describe_rows(
    token_types: Tensor,
    attention_mask: Tensor,
    vision: VisionInputs,
    *,
    start: Sequence[int],
    rules: PositionRules,
    position_ids: Tensor | None = None,
    lengths: list[int] | None = None,
) -> NewRows:
    """Describe new rows.

    Args:
        token_types: `[B, T]` ints of `TokenType`; padding is text.
        attention_mask: bool `[B, T]`.
        vision: the images and videos of these rows.
        start: first position id of each sample.
        rules: of the position ids.
        position_ids: `[3, B, T]` in place of computed ones.
        lengths: rows of each packed sample, B = 1 and T in all: each has its own frames, and
            positions from `start` on.

    Raises:
        UsageError: grids or times that do not match the vision tokens.
    """
    device = token_types.device
    types, mask = torch.stack([token_types, attention_mask.long()]).cpu()
    mask = mask.bool()
    first = torch.tensor(start)[:, None]
    ids = (first + mask.cumsum(1) - 1).expand(3, -1, -1) * mask  # right where all is text
    images, videos = iter(vision.image_grids), iter(zip(*vision[1:], strict=True))
    frame_sizes: list[list[int]] = [[] for _ in types]
    samples: Iterable[tuple[int, Tensor | slice]] = enumerate(mask)
    if lengths is not None:
        samples = [(0, slice(*span)) for span in pairwise(accumulate(lengths, initial=0))]
    for i, own in samples:
        kept = types[i, own]
        grids, times = _take_grids(kept, images, videos, rules.merge_size)
        frame_sizes[i] += [h * w // rules.merge_size**2 for t, h, w in grids for _ in range(t)]
        if (grids or lengths is not None) and position_ids is None:
            ids[:, i, own], _ = mrope_position_ids(
                kept, grids, times, start=start[i], **rules._asdict()
            )
    unused = len(list(images)) + len(list(videos))
    if unused:
        raise UsageError(
            f"{unused} images or videos have no tokens in the prompt: want a run of vision tokens "
            "for each grid"
        )
    if position_ids is not None:
        ids = position_ids.cpu()
    after = ((ids.amax(0) + 1) * mask).cummax(1).values.maximum(first)
    return NewRows(
        vision_mask=(types != TokenType.TEXT).to(device),
        attention_mask=mask.to(device),
        position_ids=ids.to(device),
        next_positions=after.to(device),
        frame_sizes=frame_sizes,
        has_vision=bool(types.any()),
        is_padded=not bool(mask.all()),
        lengths=lengths,
    )


def describe_frames(
    seconds: Sequence[float],
    size: tuple[int, int],
    *,
    start: int,
    after: int,
    rules: PositionRules,
    device: torch.device,
) -> NewRows:
    """Describe frames that follow those of a video read so far.

    Args:
        seconds: of the first frame of each new temporal patch, since the first of the video.
        size: rows and columns of patches of a frame.
        start: position id at which the video begins.
        after: the position id that text would get before these frames.
        rules: of the position ids.
        device: of the result.

    Raises:
        UsageError: a rule of temporal ids for which all frames have to be known.
    """
    if rules.temporal_ids != "exact":
        raise UsageError(
            f"temporal_ids={rules.temporal_ids!r}: more frames of a video can follow with "
            "'exact' only"
        )
    grid = (len(seconds), *size)
    ids = torch.from_numpy(
        start
        + segment_ids(
            grid,
            np.asarray(seconds, dtype=np.float64),
            tokens_per_second=rules.tokens_per_second,
            merge_size=rules.merge_size,
        )
    )
    length = ids.shape[1]
    tokens = torch.ones(1, length, dtype=torch.bool, device=device)
    return NewRows(
        vision_mask=tokens,
        attention_mask=tokens,
        position_ids=ids[:, None].to(device),
        next_positions=(ids.amax(0) + 1).cummax(0).values.clamp(min=after)[None].to(device),
        frame_sizes=[[length // grid[0]] * grid[0]],
        has_vision=True,
        is_padded=False,
    )


def _take_grids(
    token_types: Tensor,
    images: Iterator[Grid],
    videos: Iterator[tuple[Grid, Sequence[float]]],
    merge_size: int,
) -> tuple[list[Grid], list[Sequence[float]]]:
    """Grids of one sample's images and videos in order of appearance, and its videos' times.

    Checked against the tokens here, whoever computes the positions.
    """
    vision = token_types[token_types != TokenType.TEXT].tolist()
    grids: list[Grid] = []
    times: list[Sequence[float]] = []
    taken = 0
    while taken < len(vision):
        if vision[taken] == TokenType.IMAGE:
            grid = next(images, None)
        else:
            grid, seconds = next(videos, (None, ()))
            times.append(seconds)
        if grid is None:
            raise UsageError(
                f"{len(vision) - taken} vision tokens of the prompt have no grid: pass "
                "image_grid_thw or video_grid_thw (and the pixels) of every image and video"
            )
        grids.append(grid)
        taken += max(grid[0] * (grid[1] // merge_size) * (grid[2] // merge_size), 1)
    vision_segments(token_types, grids, merge_size=merge_size)
    return grids, times


def repeat_vision(
    arguments: Mapping[str, Any], token_types: Tensor, *, repeats: int, merge_size: int
) -> dict[str, Any]:
    """The vision arguments of `forward` for a batch whose samples are each repeated.

    Args:
        arguments: by name, as given for the batch before.
        token_types: `[B, T]` ints of `TokenType`, of the batch before.
        repeats: how often each sample comes, one after the other.
        merge_size: patches merged along each side.
    """
    repeated = dict(arguments)
    for kind, grid_name, pixel_name in (
        (TokenType.IMAGE, "image_grid_thw", "pixel_values"),
        (TokenType.VIDEO, "video_grid_thw", "pixel_values_videos"),
    ):
        grid_thw = arguments.get(grid_name)
        if grid_thw is None:
            continue
        patches = grid_thw.prod(1).tolist()
        tokens = iter([count // merge_size**2 for count in patches])
        order, first = [], 0
        for wanted in (token_types == kind).sum(1).tolist():
            count = 0
            while wanted > 0:
                wanted -= max(next(tokens, wanted), 1)
                count += 1
            order += list(range(first, first + count)) * repeats
            first += count
        repeated[grid_name] = grid_thw[order]
        if arguments.get(pixel_name) is not None:
            parts = arguments[pixel_name].split(patches)
            repeated[pixel_name] = torch.cat([parts[i] for i in order])
        if kind == TokenType.VIDEO:
            for name in ("video_times", "second_per_grid_ts"):
                if arguments.get(name) is not None:
                    repeated[name] = [arguments[name][i] for i in order]
    return repeated
