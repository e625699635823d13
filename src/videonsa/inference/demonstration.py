"""The embedded demonstration model says so where it is shown what it was not trained for."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import Tensor

from videonsa.inference.encoded_clip import EncodedClip, Video, encode_clip
from videonsa.models.methods.compression import Kept
from videonsa.models.shape import VisionShape
from videonsa.rendered.clips.clip_look import ClipLook
from videonsa.video.sampling import SamplingSpec
from videonsa.video.source import Decoder

WHAT_IT_KNOWS = (
    "the embedded demonstration model knows rendered clips of coloured shapes only (up to 24 s, 2 "
    "frames a second, 112 x 112 pixels)"
)
DEMONSTRATION = f"{WHAT_IT_KNOWS}, and this is none: name another model with --model"
OF_WHAT_COMES = f"{WHAT_IT_KNOWS}: name another model with --model for other videos"
"""Said of a video that is still to come, which cannot be looked at."""


def encode_for_demonstration(
    video: Video,
    sampling: SamplingSpec,
    encode: Callable[[Iterable[Tensor]], Kept],
    *,
    vision: VisionShape,
    decoder: Decoder = "cpu",
    progress: bool | None = None,
) -> EncodedClip:
    """As `encode_clip`, with a note where the frames are not like those of a rendered clip."""
    look = ClipLook()
    clip = encode_clip(
        video,
        sampling,
        lambda parts: encode(look.watch(parts)),
        vision=vision,
        decoder=decoder,
        progress=progress,
    )
    if look.is_clip(clip.times) and not clip.is_image:
        return clip
    return replace(clip, notes=(DEMONSTRATION, *clip.notes))
