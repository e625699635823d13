"""What is known of a question before its video is read: whether it fits, and what would."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from videonsa.errors import UsageError
from videonsa.inference.encoded_clip import Sampled, Video, clip_info, plan_clip
from videonsa.inference.warm_up import Prompt
from videonsa.planning.budget import check_context
from videonsa.planning.devices import Machine, find_machine
from videonsa.planning.plan import Question
from videonsa.video.chat import VisionSlot, chat_tokens
from videonsa.video.sampling import SamplingSpec
from videonsa.video.source import Decoder

if TYPE_CHECKING:
    from videonsa.inference.engine import VideoQA


class Reading(NamedTuple):
    """How a video is read and prompted; `VideoQA.ask` explains it."""

    sampling: SamplingSpec
    system: str
    fit: bool
    memory: int | None
    decoder: Decoder
    progress: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Foreseen:
    """What is known of one question before its video is read."""

    tokens: int
    """Of the prompt."""
    prompt: Prompt
    notes: tuple[str, ...]
    advice: Callable[[], str]
    """What to ask for instead, where memory runs out."""


def foresee(
    qa: "VideoQA",
    video: Video,
    question: str,
    reading: Reading,
    *,
    max_new_tokens: int,
) -> tuple[SamplingSpec, Foreseen]:
    """The sampling to take, and what is known of the prompt.

    Args:
        qa: the model.
        video: what is asked about.
        question: which.
        reading: as it was asked for. With `fit`, where its sampling fits neither context nor
            memory, the one that does is taken; `memory` is what that may count on, None what the
            GPU has to give.
        max_new_tokens: longest answer.

    Raises:
        UsageError: arguments that do not go together.
        BudgetError: what does not fit the context, unless `fit` finds what does.
    """
    shared = len(set(getattr(qa.model, "hf_device_map", {}).values())) > 1
    _check_fit(reading, shared=shared)
    wanted, memory, notes = reading.sampling, reading.memory, qa.notes
    plan = plan_clip(video, wanted)
    read = qa.tokens_of(plan.grid)
    slot = VisionSlot("image" if clip_info(video).is_image else "video", read)
    ids = chat_tokens(question, tokenizer=qa.tokenizer, vision=[slot], system=reading.system).ids
    asked = Question(
        shape=qa.shape,
        machine=_machine(qa, memory),
        text_tokens=len(ids) - read,
        max_new_tokens=max_new_tokens,
    )
    if reading.fit:
        if isinstance(video, Sampled):
            raise UsageError("fit for a clip that is read already: pass the path instead")
        fitted = asked.fit(clip_info(video), wanted)
        wanted, plan = fitted.sampling, fitted.plan
        read = qa.tokens_of(plan.grid)
        notes = (*notes, f"fit: {fitted.describe()}")
    check_context(
        plan,
        video_tokens=read,
        text_tokens=asked.text_tokens,
        max_new_tokens=max_new_tokens,
        context=qa.shape.context,
    )

    def advice() -> str:
        if shared:
            return "lower --max-frames or --max-pixels"
        now = replace(asked, machine=_machine(qa, memory))
        return now.advice(clip_info(video), wanted, plan)

    before = ids.index(getattr(qa.model.config, f"{slot.kind}_token_id"))
    return wanted, Foreseen(
        tokens=read + asked.text_tokens,
        prompt=Prompt(before, plan.grid, asked.text_tokens - before, slot.kind),
        notes=notes,
        advice=advice,
    )


def _check_fit(reading: Reading, *, shared: bool) -> None:
    """Refuse what excludes `fit`; `shared`: several devices hold the model."""
    if reading.memory is not None and not reading.fit:
        raise UsageError("memory without fit: it bounds what fit may count on; pass both")
    if reading.fit and shared:
        raise UsageError("fit with a device map: it plans for one GPU; pass --max-frames")


def _machine(qa: "VideoQA", memory: int | None) -> Machine:
    found = find_machine(qa.model.device)
    return found if memory is None else replace(found, memory=memory)
