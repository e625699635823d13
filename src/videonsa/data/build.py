"""Builds a manifest from sources: finds and probes files, judges every record, and reports.

Rows are read twice, so that neither they nor their records are ever all in memory. Only probing
takes long, and its results are kept; the rest is a pure function of rows, files and options. So a
build that was killed and is run again gives the same result as an undisturbed one.
"""

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from tqdm import tqdm

from videonsa.data.build_report import Report, Tally, require_matplotlib, write_report
from videonsa.data.clip_source import PREFIX as CLIPS
from videonsa.data.clip_source import ClipSource
from videonsa.data.files import ParquetRows, parquet_writer, pyarrow
from videonsa.data.filter import FilterOptions, Found, judge, media_facts
from videonsa.data.manifest import MANIFEST, BuildFacts, ManifestRow, ManifestWriter, MediaFacts
from videonsa.data.media import is_script, path_of
from videonsa.data.probe import DEFAULT_TIMEOUT, Target, probe_all, target_of
from videonsa.data.probe_journal import JOURNAL, FileState, ProbeJournal
from videonsa.data.reasons import DropError, Reason
from videonsa.data.records import Media, Record, VideoRef
from videonsa.data.scripts import info_of_script
from videonsa.data.sources import AnnotationFile, Entry, archives_in, find_annotations
from videonsa.data.suite_source import PREFIX, SuiteSource
from videonsa.data.tokens import RememberingTokenizer
from videonsa.disk import sole_writer
from videonsa.errors import UsageError
from videonsa.video.chat import ChatTokenizer
from videonsa.video.sampling import SamplingSpec, VideoInfo
from videonsa.video.source import VideoPath

DROPPED = "dropped.parquet"
_DROPPED_ROWS_A_GROUP = 16_384
_MOST_KINDS = 10
"""Kinds of notes about files that the report shows."""
_NUMBER = re.compile(r"\d+(\.\d+)?")
_MOST_WORKERS, _LONGEST_TIMEOUT = 1024, 86_400
Files = dict[VideoPath, Target | DropError]
_NO_FILE = FileState("", 0, 0)
Item = TypeVar("Item")


class Source(Protocol):
    """What gives records, the same whenever it is asked."""

    @property
    def name(self) -> str:
        """What tells it from the others."""

    def entries(self) -> Iterator[Entry]:
        """Its rows in order."""


class Sources(NamedTuple):
    """What a build reads."""

    sources: tuple[Source, ...]
    notes: tuple[str, ...]
    """What was passed over, one line each."""


def open_sources(names: Sequence[str], *, roots: Sequence[Path] = ()) -> Sources:
    """Sources by their names: paths of folders and files, `synthetic:...`, `clips:...`.

    Args:
        names: of which those that are made come last.
        roots: where relative paths of videos are looked for first.

    Raises:
        UsageError: one that is not there, or without rows of a known format.

    """
    paths = [Path(name) for name in names if not name.startswith((PREFIX, CLIPS))]
    made: list[Source] = [
        SuiteSource.parse(name) if name.startswith(PREFIX) else ClipSource.parse(name)
        for name in names
        if name.startswith((PREFIX, CLIPS))
    ]
    files, notes = find_annotations(paths, roots=roots)
    return Sources((*files, *made), tuple(notes))


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """How to build; workers, timeout and progress do not change the result."""

    filter: FilterOptions
    model: str
    """The name of the model whose tokenizer counts."""
    tokenizer_hash: str
    workers: int = 1
    """Processes that probe."""
    timeout: float = DEFAULT_TIMEOUT
    """Seconds that the header of a file may take."""
    progress: bool = False
    """Show bars on stderr."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant: UsageError."""
        if not 1 <= self.workers <= _MOST_WORKERS:
            raise UsageError(f"workers={self.workers}: want 1 to {_MOST_WORKERS} processes")
        if not 0 < self.timeout <= _LONGEST_TIMEOUT:
            raise UsageError(
                f"timeout={self.timeout}: want seconds above 0, at most {_LONGEST_TIMEOUT}"
            )


def build(
    sources: Sequence[Source],
    folder: Path,
    *,
    options: BuildOptions,
    tokenizer: ChatTokenizer,
    notes: Iterable[str] = (),
) -> Report:
    """Write the manifest of the records that are kept, what was dropped, and the report.

    Args:
        sources: what gives the records.
        folder: where the files go; it exists. What probing found there before is used again.
        options: how to build.
        tokenizer: counts the text.
        notes: lines that the report repeats.

    Raises:
        UsageError: a source that cannot be read to its end, another build that is writing into the
            folder, or pyarrow or matplotlib missing.
        OSError: the folder cannot be written to, or the disk is full.

    """
    require_matplotlib()
    with sole_writer(folder, work="data build"):
        files = _find_files(sources, progress=options.progress)
        with ProbeJournal(folder / JOURNAL) as journal:
            _probe(files, journal, options)
        tally = Tally()
        judged = _judged(sources, files, journal, options, RememberingTokenizer(tokenizer))
        with _manifest(folder, sources, options) as manifest, _dropped(folder) as dropped:
            for entry, outcome in judged:
                if isinstance(outcome, DropError):
                    tally.drop(entry, outcome)
                    dropped.write(_dropped_row(entry, outcome))
                else:
                    tally.keep(entry, outcome)
                    manifest.write(outcome)
            report = tally.report(
                data_hash=manifest.data_hash,
                options=options.filter,
                files=_count_files(files, journal),
                notes=(
                    *notes,
                    *journal.notes,
                    *_archive_notes(sources, files),
                    *_reading_notes(files, journal),
                ),
            )
            # The manifest comes last: where it is, all the others are.
            write_report(report, folder)
    return report


def _find_files(sources: Sequence[Source], *, progress: bool) -> Files:
    """Every video and image that a row names, as it is now."""
    files: Files = {}
    read = [one for one in sources if not isinstance(one, (SuiteSource, ClipSource))]
    rows = (entry for source in read for entry in source.entries())
    for entry in _bar(rows, "reading", unit="row", shown=progress):
        if isinstance(entry.found, Record):
            for media in entry.found.media:
                if is_script(media):
                    continue
                path = path_of(media)
                if path not in files:
                    files[path] = _target(path)
    return files


def _target(path: VideoPath) -> Target | DropError:
    try:
        return target_of(path)
    except DropError as error:
        return error


def _probe(files: Files, journal: ProbeJournal, options: BuildOptions) -> None:
    targets = [target for target in files.values() if isinstance(target, Target)]
    fresh = sum(target.state not in journal for target in targets)
    done = probe_all(targets, journal=journal, workers=options.workers, timeout=options.timeout)
    for _ in _bar(done, "probing", total=fresh, unit="file", shown=options.progress):
        pass


def _judged(
    sources: Sequence[Source],
    files: Files,
    journal: ProbeJournal,
    options: BuildOptions,
    tokenizer: ChatTokenizer,
) -> Iterator[tuple[Entry, ManifestRow | DropError]]:
    seen: set[bytes] = set()
    facts = _Facts(files, journal, options.filter.uncapped)
    rows = (entry for source in sources for entry in source.entries())
    for entry in _bar(rows, "judging", unit="row", shown=options.progress):
        if isinstance(entry.found, DropError):
            yield entry, entry.found
            continue
        try:
            _check_new(entry.found, seen)
            media = tuple(map(facts.of, entry.found.media))
            yield entry, judge(entry.found, media, options=options.filter, tokenizer=tokenizer)
        except DropError as error:
            yield entry, error


def _check_new(record: Record, seen: set[bytes]) -> None:
    digest = hashlib.sha256(repr(record.turns).encode()).digest()[:12]
    if digest in seen:
        raise DropError(Reason.DUPLICATE, "the same text and files as a record before it")
    seen.add(digest)


class _Facts:
    """What sampling makes of each video and image; worked out once, for many rows share one."""

    def __init__(self, files: Files, journal: ProbeJournal, sampling: SamplingSpec) -> None:
        self._files = files
        self._journal = journal
        self._sampling = sampling
        self._known: dict[Media, MediaFacts | DropError] = {}

    def of(self, media: Media) -> MediaFacts:
        """The facts; DropError where it cannot be used."""
        if media not in self._known:
            try:
                self._known[media] = media_facts(self._found(media), self._sampling)
            except DropError as error:
                self._known[media] = error
        facts = self._known[media]
        if isinstance(facts, DropError):
            raise facts.with_traceback(None)  # it would grow with each raise
        return facts

    def _found(self, media: Media) -> Found:
        if isinstance(media, VideoRef) and media.script is not None:
            return Found(media, _NO_FILE, info_of_script(media.script))
        target = self._files.get(path_of(media))
        if target is None:
            raise DropError(Reason.MISSING, "its source has changed since it was read first")
        if isinstance(target, DropError):
            raise target
        return Found(media, target.state, self._journal[target.state])


def _manifest(folder: Path, sources: Sequence[Source], options: BuildOptions) -> ManifestWriter:
    facts = BuildFacts(
        sampling=options.filter.sampling,
        max_tokens=options.filter.max_tokens,
        system=options.filter.system,
        model=options.model,
        tokenizer_hash=options.tokenizer_hash,
        options=asdict(options.filter) | {"sources": [source.name for source in sources]},
    )
    return ManifestWriter(folder / MANIFEST, facts=facts)


def _dropped(folder: Path) -> AbstractContextManager[ParquetRows]:
    arrow, _ = pyarrow()
    schema = arrow.schema([(name, arrow.string()) for name in ("id", "source", "reason", "detail")])
    return parquet_writer(folder / DROPPED, schema=schema, rows_a_group=_DROPPED_ROWS_A_GROUP)


def _dropped_row(entry: Entry, error: DropError) -> dict[str, str]:
    return {
        "id": entry.id,
        "source": entry.source,
        "reason": str(error.reason),
        "detail": error.detail,
    }


def _count_files(files: Files, journal: ProbeJournal) -> dict[str, int]:
    """How many of the files that rows name there are, and how many can be used."""
    there = [target for target in files.values() if isinstance(target, Target)]
    usable = sum(isinstance(journal[target.state], VideoInfo) for target in there)
    return {
        "named": len(files),
        "missing": len(files) - len(there),
        "broken": len(there) - usable,
        "usable": usable,
    }


def _archive_notes(sources: Sequence[Source], files: Files) -> Iterator[str]:
    """Where files are missing, the archives that may hold them."""
    missing = [str(path) for path, target in files.items() if isinstance(target, DropError)]
    folders = {
        source.path.absolute().parent for source in sources if isinstance(source, AnnotationFile)
    }
    for folder in sorted(folders):
        count = sum(path.startswith(f"{folder}/") for path in missing)
        archives = archives_in(folder) if count else []
        if archives:
            others = f" and {len(archives) - 1} more" if len(archives) > 1 else ""
            yield (
                f"{folder}: {count} files are missing, and {archives[0]}{others} may hold them: "
                "unpack there, then build again"
            )


def _reading_notes(files: Files, journal: ProbeJournal) -> Iterator[str]:
    """What reading chose, left out, repeated or scaled: each kind with its files and an example."""
    kinds: dict[str, list[str]] = {}
    for target in files.values():
        info = journal[target.state] if isinstance(target, Target) else None
        if not isinstance(info, VideoInfo):
            continue
        for note in info.notes:
            kinds.setdefault(_NUMBER.sub("N", note), []).append(f"{info.path}: {note}")
    for notes in sorted(kinds.values(), key=len, reverse=True)[:_MOST_KINDS]:
        yield f"{len(notes)} files, such as {notes[0]}"
    if len(kinds) > _MOST_KINDS:
        yield f"{len(kinds) - _MOST_KINDS} more kinds of notes about files"


def _bar(
    items: Iterable[Item], doing: str, *, unit: str, shown: bool, total: int | None = None
) -> Iterator[Item]:
    return iter(tqdm(items, desc=doing, total=total, unit=unit, file=sys.stderr, disable=not shown))
