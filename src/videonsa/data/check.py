"""Checks that a manifest still holds: its rows, their files, their sampling and token counts."""

from collections.abc import Iterator
from typing import NamedTuple

from videonsa.data.agreement import disagreements
from videonsa.data.filter import Found, media_facts, without_cap
from videonsa.data.manifest import Manifest, ManifestRow, MediaFacts
from videonsa.data.media import is_script, path_of, script_of_media
from videonsa.data.probe import probe_file, target_of
from videonsa.data.probe_journal import FileState
from videonsa.data.reasons import DropError
from videonsa.data.records import Media
from videonsa.data.scripts import script_info
from videonsa.data.tokens import RememberingTokenizer, conversation_tokens
from videonsa.errors import VideoNSAError
from videonsa.video.chat import IGNORED_LABEL, ChatTokenizer
from videonsa.video.sampling import SamplingSpec
from videonsa.video.source import VideoPath

SAMPLED_ROWS = 1000
"""Rows whose videos are probed and whose tokens are counted again, unless all are."""


class Problem(NamedTuple):
    """What does not hold."""

    row: int | None
    """The row that it was met at first; None where it is about the manifest as a whole."""
    text: str

    def __str__(self) -> str:
        where = "manifest" if self.row is None else f"row {self.row}"
        return f"{where}: {self.text}"


def check_manifest(
    manifest: Manifest,
    *,
    tokenizer: ChatTokenizer,
    tokenizer_hash: str,
    model: str | None = None,
    sampling: SamplingSpec | None = None,
    all_rows: bool = False,
) -> Iterator[Problem | None]:
    """Every problem, and None for each row that was looked at.

    Of every row, the id, the limits of the build and the state of its files are checked; of a
    sample of them, or of all, the files are probed, the text is encoded, and what comes of it is
    compared with what is stated.

    Args:
        manifest: to be checked.
        tokenizer: of the model that it was counted with.
        tokenizer_hash: what tells that from others.
        model: its name; None for that of the build.
        sampling: how the model samples a video unless told otherwise; None where it does not say.
        all_rows: probe and encode all rows, not a sample.

    """
    if manifest.hash_rows() != manifest.data_hash:
        yield Problem(None, "its rows are not those that were written: build it again")
    facts = manifest.facts
    for text in disagreements(
        facts,
        model=model or facts.model,
        tokenizer_hash=tokenizer_hash,
        sampling=sampling or facts.sampling,
    ):
        yield Problem(None, text)
    step = 1 if all_rows else max(1, len(manifest) // SAMPLED_ROWS)
    remembering = RememberingTokenizer(tokenizer)
    ids: set[str] = set()
    sound: dict[VideoPath, bool] = {}
    for index, row in enumerate(manifest):
        problems = [*_limits(row, manifest), *_files(row, sound)]
        if row.record.id in ids:
            problems.append(f"the id {row.record.id} is that of an earlier row")
        ids.add(row.record.id)
        if index % step == 0 and not problems and all(sound[path] for path in _paths(row)):
            problems += _counts(row, manifest, remembering)
        yield from (Problem(index, text) for text in problems)
        yield None


def _limits(row: ManifestRow, manifest: Manifest) -> Iterator[str]:
    options = manifest.facts.options
    least, most = options.get("min_frames", 0), options.get("max_frames", row.num_frames)
    if row.record.media and not least <= row.num_frames <= most:
        yield f"{row.num_frames} frames, outside the limits of the build"
    if manifest.facts.max_tokens is not None and row.tokens > manifest.facts.max_tokens:
        yield f"{row.tokens} tokens, over the limit of the build"
    if len(row.media) != len(row.record.media):
        yield f"facts of {len(row.media)} files for {len(row.record.media)} that it shows"
    if row.video_tokens + row.image_tokens + row.text_tokens != row.tokens:
        yield "its counts of tokens do not add up"


def _paths(row: ManifestRow) -> list[VideoPath]:
    return [path_of(media) for media in row.record.media if not is_script(media)]


def _files(row: ManifestRow, sound: dict[VideoPath, bool]) -> Iterator[str]:
    """Files that are missing or have changed; each is checked once, and noted in `sound`."""
    for media, facts in zip(row.record.media, row.media, strict=False):
        if is_script(media) or path_of(media) in sound:
            continue
        path = path_of(media)
        problem = _file_problem(path, facts)
        sound[path] = problem is None
        if problem is not None:
            yield f"{path} {problem}"


def _file_problem(path: VideoPath, facts: MediaFacts) -> str | None:
    try:
        state = target_of(path).state
    except DropError:
        return "is not there any more"
    if state.size != facts.file_size:
        return f"has changed: {state.size} bytes, not {facts.file_size}"
    return None if state.mtime_ns == facts.mtime_ns else "was written again since it was probed"


def _counts(row: ManifestRow, manifest: Manifest, tokenizer: ChatTokenizer) -> Iterator[str]:
    facts = manifest.facts
    uncapped = without_cap(facts.sampling)
    try:
        for media, stated in zip(row.record.media, row.media, strict=True):
            found = media_facts(_found(media, stated), uncapped)
            if found != stated:
                yield f"{found.num_frames} frames of {found.width}x{found.height}, not {stated}"
        tokens = conversation_tokens(
            row.record,
            tokenizer=tokenizer,
            vision_token_counts=row.vision_token_counts,
            max_tokens=facts.max_tokens,
            system=facts.system,
        )
    except (DropError, VideoNSAError) as error:
        yield str(error)
        return
    if len(tokens.ids) != row.tokens:
        yield f"{len(tokens.ids)} tokens, not {row.tokens}"
    if (tokens.num_turns, tokens.num_media) != (row.num_turns, row.num_media):
        yield f"cut after {tokens.num_turns} turns, not {row.num_turns}"
    if all(label == IGNORED_LABEL for label in tokens.labels):
        yield "no token of it carries loss"


def _found(media: Media, stated: MediaFacts) -> Found:
    script = script_of_media(media)
    info = probe_file(path_of(media)) if script is None else script_info(script)
    return Found(media, FileState("", stated.file_size, stated.mtime_ns), info)
