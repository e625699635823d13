"""The samples of a manifest: token ids, labels and frames, or why a file cannot be read."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from videonsa.data.isolated import CallFailed, IsolatedCaller, Kind
from videonsa.data.manifest import Manifest, ManifestRow, MediaFacts
from videonsa.data.media import Frames, name_of, plan_media, read_media, script_of_media
from videonsa.data.records import Media, VideoRef
from videonsa.data.scripts import drawing_or_frames, script_info
from videonsa.data.tokens import Loss, RememberingTokenizer, conversation_tokens
from videonsa.errors import ModelError
from videonsa.ops.drawing import Drawing
from videonsa.video.chat import (
    IGNORED_LABEL,
    PADDING,
    PADS,
    VISION_END,
    VISION_START,
    ChatTokenizer,
    format_ids,
)
from videonsa.video.sampling import SamplingSpec

DEADLINE_SECONDS = 120.0
"""In which a video must be read."""
MOST_LOST = 0.1
"""Share of the wanted frames that a video may lack: a damaged end is no sample of the rest."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """One conversation, ready to be packed."""

    index: int
    """Its row in the manifest."""
    id: str
    input_ids: Tensor
    """int64 [L]."""
    labels: Tensor
    """int64 [L], -100 where the loss does not count."""
    videos: tuple[Tensor | Drawing, ...]
    """Frames of each: uint8 [N, 3, H, W], RGB; or, of the suite, what they are drawn from."""
    video_times: tuple[tuple[float, ...], ...]
    """Of each video, the seconds of each temporal patch, as position ids count them."""
    images: tuple[Tensor, ...]
    """uint8 [1, 3, H, W] each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A sample whose video or image cannot be read."""

    index: int
    """Its row in the manifest."""
    id: str
    file: str
    kind: Kind
    """Whether reading hangs, ends its process, or gives too little."""
    reason: str
    """One line."""


class _Unreadable(Exception):
    def __init__(self, media: Media, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.media = media
        self.kind: Kind = kind
        self.reason = reason


class VideoDataset(Dataset[Sample | Failure]):
    """The rows of a manifest as samples, in any order.

    Video files are read in a process of their own, so that one that hangs or that ends its reader
    costs its deadline and nothing else. A dataset may be sent to workers; each has its own reader.

    Args:
        manifest: what to read, and how it was sampled and counted.
        tokenizer: that of the manifest's model.
        loss: `all` counts every turn of the assistant, `last` the last one.
        deadline: seconds in which a video must be read.
        most_time_scale: the seconds of a sample's videos are multiplied by a factor from 1 to
            this, log-uniform and always the same for a sample.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        tokenizer: ChatTokenizer,
        loss: Loss = "all",
        deadline: float = DEADLINE_SECONDS,
        most_time_scale: float = 1.0,
    ) -> None:
        self.manifest = manifest
        self._most_time_scale = most_time_scale
        self.lengths: NDArray[np.int64] = manifest.column("tokens")
        """Tokens of each sample, at most: less where a damaged video lacks frames."""
        self._tokenizer = RememberingTokenizer(tokenizer)
        self._loss = loss
        self._call = IsolatedCaller(deadline=deadline)

    @property
    def sampling(self) -> SamplingSpec:
        """How videos are sampled, unless their record says otherwise."""
        return self.manifest.facts.sampling

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> Sample | Failure:
        """A sample, or why there is none.

        Raises:
            IndexError: there is no such row.
            ModelError: another tokenizer than the manifest was counted with.
            DataError: the process that reads videos does not start.
        """
        row = self.manifest[index]
        try:
            return self._sample(index, row)
        except _Unreadable as error:
            return Failure(
                index=index,
                id=row.record.id,
                file=name_of(error.media),
                kind=error.kind,
                reason=error.reason,
            )

    @property
    def pad_id(self) -> int:
        """The token that fills a sample up.

        Raises:
            ModelError: the tokenizer has none.
        """
        found = self._tokenizer.convert_tokens_to_ids(PADDING)
        if not isinstance(found, int):
            raise ModelError(
                f"the tokenizer has no {PADDING} to pad samples with: want that of a Qwen2.5-VL, "
                "or data.shapes=any"
            )
        return found

    def blank(self) -> Sample:
        """One black image and nothing to learn.

        It stands behind text alone where all ranks must use the vision tower in every step.
        """
        side = 2 * self.sampling.factor
        ids = format_ids(self._tokenizer)
        shown = [ids[PADS["image"]]] * (side // self.sampling.factor) ** 2
        row = torch.tensor([ids[VISION_START], *shown, ids[VISION_END]])
        return Sample(
            index=-1,
            id="blank",
            input_ids=row,
            labels=torch.full_like(row, IGNORED_LABEL),
            videos=(),
            video_times=(),
            images=(torch.zeros(1, 3, side, side, dtype=torch.uint8),),
        )

    def reopened(self) -> "VideoDataset":
        """The same, with files and processes of its own: for the other side of a fork."""
        twin = copy.copy(self)
        twin.manifest = copy.copy(self.manifest)
        twin._call = copy.copy(self._call)
        return twin

    def close(self) -> None:
        """End the process that reads videos; the next sample starts another."""
        self._call.close()

    def _sample(self, index: int, row: ManifestRow) -> Sample:
        kept = row.record.media[: row.num_media]
        read = [self._read(*each) for each in zip(kept, row.media[: row.num_media], strict=True)]
        # Cut as the manifest was, whatever is lost of the videos.
        record = replace(row.record, turns=row.record.turns[: row.num_turns])
        tokens = conversation_tokens(
            record,
            tokenizer=self._tokenizer,
            vision_token_counts=[_num_tokens(clip, self.sampling) for clip, _ in read],
            loss=self._loss,
            system=self.manifest.facts.system,
        )
        if len(tokens.ids) > row.tokens:
            raise ModelError(
                f"record {record.id}: {len(tokens.ids)} tokens, the manifest says {row.tokens}: "
                f"want the tokenizer that it was built with, that of {self.manifest.facts.model}"
            )
        are_videos = [isinstance(media, VideoRef) for media in kept]
        clips = [clip for clip, _ in read]
        every = self.sampling.temporal_patch_size
        scale = self._most_time_scale ** np.random.default_rng(index).random()
        times = [tuple(time * scale for time in seconds[::every]) for _, seconds in read]
        return Sample(
            index=index,
            id=record.id,
            input_ids=torch.tensor(tokens.ids),
            labels=torch.tensor(tokens.labels),
            videos=_where(are_videos, clips),
            video_times=_where(are_videos, times),
            images=_where([not is_video for is_video in are_videos], clips),
        )

    def _read(self, media: Media, facts: MediaFacts) -> tuple[Tensor | Drawing, tuple[float, ...]]:
        """A video or an image, and the seconds of its frames as position ids count them."""
        script = script_of_media(media)
        if script is not None:  # making a drawing cannot hang or crash: no process of its own
            plan = plan_media(media, script_info(script), self.sampling)
            return self._checked(drawing_or_frames(script), media, facts), plan.times
        try:
            frames = self._call(_read_alone, media, self.sampling)
        except CallFailed as failure:
            raise _Unreadable(media, failure.kind, failure.reason) from failure
        clip = torch.from_numpy(frames.pixels)
        return self._checked(clip, media, facts), frames.position_times

    def _checked(self, clip: Tensor | Drawing, media: Media, facts: MediaFacts) -> Tensor | Drawing:
        """It, if it is what the manifest says."""
        count, _, height, width = clip.shape
        if (height, width) != (facts.height, facts.width) or count > facts.num_frames:
            raise _Unreadable(
                media,
                "broken",
                f"{count} frames of {width}x{height}, the manifest says {facts.num_frames} of "
                f"{facts.width}x{facts.height}: it has changed since, build the manifest again",
            )
        # The number of keyframes is not known beforehand.
        least = 1 if self.sampling.mode == "keyframes" else (1 - MOST_LOST) * facts.num_frames
        if count < least:
            raise _Unreadable(
                media, "broken", f"only {count} of {facts.num_frames} frames can be decoded"
            )
        return clip


def _read_alone(media: Media, sampling: SamplingSpec) -> Frames:
    """Runs in the other process, with one thread: several such processes run at once."""
    torch.set_num_threads(1)
    return read_media(media, sampling)


def _where(wanted: Sequence[bool], items: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(item for item, is_wanted in zip(items, wanted, strict=True) if is_wanted)


def _num_tokens(clip: Tensor | Drawing, sampling: SamplingSpec) -> int:
    """Merged tokens, the last temporal patch filled up."""
    count, _, height, width = clip.shape
    patches = math.ceil(count / sampling.temporal_patch_size)
    return int(patches * height * width // sampling.factor**2)
