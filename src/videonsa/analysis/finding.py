"""`Finding`: what was measured and what it holds for, as JSON keeps it and as a figure shows it."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from videonsa.analysis.asked import Asked
from videonsa.disk import write_atomic
from videonsa.errors import UsageError
from videonsa.machine import evaluation_facts
from videonsa.models.methods import AttentionMethod
from videonsa.parsing import one_line, read_json_object, typed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from videonsa.analysis.look import Look
    from videonsa.inference.engine import VideoQA

FORMAT, VERSION = "videonsa.finding", 1

Progress = Callable[[str], None]
"""Told in one line what is being measured."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a measurement holds for."""

    model: str
    demonstration: bool
    """Whether it is the embedded model, which has learnt rendered clips alone."""
    method: str
    parameters: dict[str, Any] | None
    dtype: str
    asked: dict[str, Any]
    """Videos and questions, with their seeds."""
    options: dict[str, Any]
    """Of the finding."""
    machine: dict[str, Any]
    """Device, versions and commit."""
    seconds: float
    """The measurement took."""
    notes: tuple[str, ...] = ()
    """What was left out, chosen or fallen back to, one line each."""


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Of a finding that has none."""


@dataclass(frozen=True, kw_only=True)
class Finding(ABC):
    """What was measured for one finding: fields of JSON values and of dataclasses of these."""

    name: ClassVar[str]
    """As the command and the files have it."""
    options: ClassVar[type] = NoOptions
    """A frozen dataclass, whose fields `--set` takes."""
    size: ClassVar[tuple[float, float]] = (8.6, 5.0)
    """Of the figure, in inches."""

    facts: Facts

    @classmethod
    @abstractmethod
    def measure(cls, qa: "VideoQA", asked: Asked, options: Any, *, progress: Progress) -> Self:
        """Measure it.

        Args:
            qa: the model.
            asked: which videos are shown and what is asked about them.
            options: of `cls.options`.
            progress: told what is being done.
        """

    @abstractmethod
    def draw(self, figure: "Figure", look: "Look") -> None:
        """Draw what was measured on an empty figure, from the fields alone."""

    @abstractmethod
    def sentences(self) -> tuple[str, ...]:
        """What was found, in plain sentences with numbers; what cannot be told is said too."""

    def to_json(self) -> dict[str, Any]:
        """As JSON keeps it."""
        stated = {"format": FORMAT, "version": VERSION, "finding": self.name}
        content: dict[str, Any] = _as_json(asdict(self))
        return stated | content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """From what `to_json` gave.

        Raises:
            UsageError: it is of another finding or version, or damaged.
        """
        check_format(content)
        fields = {key: value for key, value in content.items() if key not in ("format", "version")}
        if fields.pop("finding", None) != cls.name:
            raise UsageError(f"a finding {content.get('finding')!r}: want {cls.name!r}")
        try:
            read: Self = typed(cls, fields)
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"the finding {cls.name!r} cannot be read ({one_line(error)}): measure it again"
            ) from error
        return read

    def write(self, folder: Path) -> Path:
        """Write `NAME.json` into a folder, atomically; gives its path."""
        path = folder / f"{self.name}.json"
        write_atomic(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        return path


def check_format(content: dict[str, Any]) -> None:
    """Refuse JSON that is no finding of this version: UsageError."""
    found = content.get("format"), content.get("version")
    if found != (FORMAT, VERSION):
        raise UsageError(
            f"format {found[0]!r}, version {found[1]!r}: want {FORMAT!r}, version {VERSION}; "
            "measure it again"
        )


def findings_in(folder: Path) -> list[dict[str, Any]]:
    """The JSON of all findings of a folder, by file name; other files are passed over.

    Raises:
        UsageError: a finding of another version.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        content: dict[str, Any] = {}
        with suppress(UsageError):
            content = read_json_object(path)
        if content.get("format") == FORMAT:
            check_format(content)
            found.append(content)
    return found


@dataclass(frozen=True)
class Measuring:
    """Takes the time of a measurement and gathers its notes; `facts` states them."""

    qa: "VideoQA"
    asked: Asked
    options: Any
    notes: list[str] = field(default_factory=list)
    begin: float = field(default_factory=time.perf_counter)

    def note(self, lines: Iterable[str]) -> None:
        """Add what has to be said, each line once."""
        self.notes.extend(line for line in dict.fromkeys(lines) if line not in self.notes)

    def facts(self, *, method: AttentionMethod | None = None) -> Facts:
        """What the measurement holds for, at its end.

        Args:
            method: how the model attended; None: as it does.
        """
        qa = self.qa
        method = qa.model.method if method is None else method
        return Facts(
            model=qa.name,
            demonstration=qa.demonstration,
            method=method.full_name,
            parameters=_as_json(method.parameters()),
            dtype=str(qa.model.dtype).removeprefix("torch."),
            asked=_as_json(self.asked.to_dict()),
            options=_as_json(asdict(self.options)),
            machine=evaluation_facts(qa.model.device),
            seconds=round(time.perf_counter() - self.begin, 2),
            notes=(*qa.notes, *self.asked.notes(qa), *self.notes),
        )


def _as_json(value: Any) -> Any:
    """As it is read again: tuples are lists."""
    return json.loads(json.dumps(value, allow_nan=False))
