"""Where records come from: folders and files of annotations, as one stream of records."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from videonsa.data.formats import describe_row, detect_format, parse_row
from videonsa.data.jsonfiles import BadRow, read_rows
from videonsa.data.reasons import DropError, Reason
from videonsa.data.records import Record
from videonsa.errors import UsageError

ANNOTATION_SUFFIXES = (".json", ".jsonl")
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://|data:")


class Entry(NamedTuple):
    """One row of a source: a record, or why it is none."""

    id: str
    source: str
    found: Record | DropError
    placed: bool = False
    """Its text did not say where its videos and images stand: they were put first."""
    unread: tuple[str, ...] = ()
    """Its fields that nothing is made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotationFile:
    """A file of rows."""

    path: Path
    name: str
    """As much of the path as tells it from the others; the ids of its records begin with it."""
    source: str
    """The data set of rows that name none."""
    roots: tuple[Path, ...]
    """Where relative paths are looked for, in this order."""

    def entries(self) -> Iterator[Entry]:
        """Its rows in order.

        Raises:
            UsageError: a file that cannot be read to its end.

        """
        resolver = PathResolver(self.roots)
        for index, row in enumerate(read_rows(self.path)):
            name = f"{self.name}#{index}"
            if isinstance(row, BadRow):
                yield Entry(name, self.source, DropError(Reason.BAD_ROW, row.problem))
            else:
                yield _entry(row, name, self.source, resolver)


class PathResolver:
    """From paths as they stand in rows to absolute ones."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = [os.path.abspath(root) for root in roots]
        self._known: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        """The absolute path: under the first root that has it, else under the first of all.

        Raises:
            DropError: an address that is no file.

        """
        if path not in self._known:
            self._known[path] = self._resolve(path)
        return self._known[path]

    def _resolve(self, path: str) -> str:
        if path.startswith("file://"):
            path = unquote(path.removeprefix("file://"))
        elif _ADDRESS.match(path):
            raise DropError(Reason.REMOTE, path[:100])
        places = [os.path.normpath(os.path.join(root, path)) for root in self._roots]
        found = next((place for place in places if os.path.exists(place)), places[0])
        if not _is_unicode(found):
            raise DropError(Reason.BAD_ROW, "a path that is not valid Unicode")
        return found


def find_annotations(
    sources: Sequence[Path], *, roots: Sequence[Path] = ()
) -> tuple[list[AnnotationFile], list[str]]:
    """The annotation files of folders and files, and a line for each that was passed over.

    A folder is LLaVA-Video-178K, one of its parts, or any that has .json or .jsonl files in it or
    in the folders in it. Relative paths of videos count from `roots`, then from the folder of the
    annotation file, then from the one above.

    Raises:
        UsageError: a source that is not there, or without rows of a known format.

    """
    paths: dict[Path, Path | None] = {}  # an annotation file: the folder it was found in
    notes: list[str] = []
    real: dict[str, Path] = {}
    for source in sources:
        folder = source if source.is_dir() else None
        found, passed_over = ([source], []) if folder is None else _search(folder)
        if folder is None and (problem := why_no_annotations(source)) is not None:
            raise UsageError(f"{source}: no annotations that can be read: {problem}")
        notes += passed_over
        for path in found:
            first = real.setdefault(os.path.realpath(path), path)
            if first is path:
                paths[path] = folder
            elif first != path:
                notes.append(f"{path}: passed over: it is {first}, which is read")
    names = _telling_names(list(paths))
    files = [
        AnnotationFile(
            path=path,
            name=name,
            source=path.stem if folder is None else path.absolute().parent.name,
            roots=(*roots, path.absolute().parent, path.absolute().parents[1]),
        )
        for (path, folder), name in zip(paths.items(), names, strict=True)
    ]
    return files, notes


def why_no_annotations(path: Path) -> str | None:
    """Why the first row of a file is of no known format; None if it is of one."""
    if not _is_unicode(str(path.absolute())):
        return "its path is not valid Unicode: rename it"
    try:
        row = next(read_rows(path), BadRow("it has no rows"))
    except UsageError as error:
        return str(error)
    if isinstance(row, BadRow):
        return row.problem
    return None if detect_format(row) is not None else f"in its first row, {describe_row(row)}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _search(folder: Path) -> tuple[list[Path], list[str]]:
    candidates = sorted(
        path
        for depth in ("*", "*/*")
        for path in folder.glob(depth)
        if path.suffix.lower() in ANNOTATION_SUFFIXES and not path.name.startswith(".")
    )
    problems = {path: why_no_annotations(path) for path in candidates}
    found = [path for path, problem in problems.items() if problem is None]
    passed_over = [
        f"{path}: passed over: {problem}" for path, problem in problems.items() if problem
    ]
    if not found:
        raise UsageError(
            f"{folder}: no annotations in it or in its folders ({len(candidates)} JSON files, none "
            "of them of a known format): want LLaVA-Video-178K, ms-swift JSONL or Hugging Face "
            f"messages{'; ' + passed_over[0] if passed_over else ''}"
        )
    return found, passed_over


def archives_in(folder: Path) -> list[str]:
    """Names of the archives in a folder, which may hold what is missing."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(name for name in names if name.endswith(ARCHIVE_SUFFIXES))


def _telling_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all of them apart, two at least."""
    parts = [path.absolute().parts for path in paths]
    for depth in count(2):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different names")


def _entry(row: Any, place: str, source: str, resolver: PathResolver) -> Entry:
    name = place
    try:
        content = json.dumps(row, sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        name = f"{place}-{digest[:12]}"
        if not _is_unicode(content):
            raise DropError(Reason.BAD_ROW, "text that is not valid Unicode")
        parsed = parse_row(row, resolve=resolver)
        source = parsed.source or source
        record = Record(id=name, source=source, turns=parsed.turns)
    except DropError as error:
        return Entry(name, source, error)
    except RecursionError:
        return Entry(name, source, DropError(Reason.BAD_ROW, "it is nested too deeply"))
    except UsageError as error:
        return Entry(name, source, DropError(Reason.BAD_TURNS, str(error)))
    return Entry(name, source, record, parsed.placed, parsed.unread)
