"""`search_head_patterns`: which vertical-slash sizes suit each head of a model, on a video."""

from typing import TYPE_CHECKING, Any

from videonsa.errors import UsageError
from videonsa.models.methods import DENSE
from videonsa.models.methods.head_patterns import HeadPatterns
from videonsa.models.recorder.head_patterns import FIRST_ROW, PatternSearch

if TYPE_CHECKING:
    from videonsa.inference.encoded_clip import Video
    from videonsa.inference.engine import VideoQA
    from videonsa.inference.usage import Usage

QUESTION = "Describe this video in detail."


def search_head_patterns(
    qa: "VideoQA",
    video: "Video",
    *,
    name: str,
    question: str = QUESTION,
    first_row: int = FIRST_ROW,
    **reading: Any,
) -> "tuple[HeadPatterns, Usage]":
    """Search patterns for `minference` while one prompt about a video is read densely, once.

    Args:
        qa: a model that attends densely.
        video: as for `VideoQA.ask`.
        name: of the video, for the record.
        question: the end of the prompt, whose last rows choose columns and offsets.
        first_row: of the rows that are scored.
        reading: options of `VideoQA.ask` that say which frames are read.

    Raises:
        UsageError: another method, a prompt of no more than `first_row` tokens, or one that is
            read in parts.
    """
    if (method := qa.model.method.full_name) != DENSE:
        raise UsageError(
            f"head patterns of a model that attends by {method!r}: load it with method={DENSE!r}"
        )
    search = PatternSearch(first_row=first_row)
    asked = {"max_new_tokens": 1, "temperature": 0.0, "recorder": search, **reading}
    usage = qa.ask(video, question, **asked).usage
    found = HeadPatterns(
        model=usage.model,
        searched_on=f"{name} ({usage.num_frames} frames, {usage.prompt_tokens} tokens)",
        source=f"videonsa methods search minference, rows from {first_row} on",
        sizes=search.sizes,
    )
    return found, usage
