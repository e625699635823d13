"""What the paper reports: every value with its table, and what contradicts it inside the paper."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from videonsa.parsing import parse_json, typed

_FILE = "paper_values.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperTask:
    """A benchmark as Table 5 sets it; what is None is not stated."""

    name: str
    tokens_a_frame: int | None = None
    frames: int | None = None
    fps: float | None = None
    max_new_tokens: int | None = None

    @property
    def claimed_tokens(self) -> int | None:
        """Tokens a frame times frames, as the paper counts; Qwen2.5-VL merges two frames."""
        if self.tokens_a_frame is None or self.frames is None:
            return None
        return self.tokens_a_frame * self.frames


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRow:
    """A row of one of the paper's tables."""

    table: str
    row: str
    values: dict[str, float]
    """By task, percent."""
    weights: str | None = None
    """Of which model: a name of `PaperFile.weights`, or one that was not published."""
    method: str | None = None
    """By its name here; None of models that are not run here."""
    branches: tuple[str, ...] = ()
    """Of NSA, where not all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contradiction:
    """What two places of the paper say differently, and which cells it concerns."""

    says: str
    tasks: tuple[str, ...]
    cells: tuple[tuple[str, str], ...]
    """Table and row of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperFile:
    """All that is known of the paper's results."""

    paper: str
    weights: dict[str, str]
    """Published weights and their Hugging Face ids."""
    attention: dict[str, int]
    """Of NSA in the fixed configuration, fields of `NSASpec`."""
    tasks: dict[str, PaperTask]
    rows: tuple[PaperRow, ...]
    contradictions: tuple[Contradiction, ...]

    def rows_of(
        self, task: str, *, method: str, weights: str | None, branches: tuple[str, ...] = ()
    ) -> list[PaperRow]:
        """The rows to compare a result with.

        Where the paper has no such weights, they are those that it reports the method with first.

        Args:
            task: as lmms-eval names it.
            method: its name.
            weights: a name of `self.weights`; None of weights that the paper does not have.
            branches: of NSA, where not all.
        """
        found = [
            row
            for row in self.rows
            if task in row.values and row.method == method and set(row.branches) == set(branches)
        ]
        own = [row for row in found if row.weights == weights]
        return own or [row for row in found if row.weights == found[0].weights]

    def contradictions_of(self, task: str, row: PaperRow) -> list[str]:
        """What contradicts a cell, a sentence each."""
        cell = (row.table, row.row)
        return [one.says for one in self.contradictions if task in one.tasks and cell in one.cells]

    def weights_named(self, model: str) -> str | None:
        """Which of the paper's weights a model id or a folder of that name holds; None: no such."""
        last = model.split("@")[0].rstrip("/").rsplit("/", 1)[-1]
        names = {place.rsplit("/", 1)[-1]: name for name, place in self.weights.items()}
        return names.get(last)


@cache
def the_paper() -> PaperFile:
    """The values that the package holds."""
    found: PaperFile = typed(
        PaperFile, parse_json(files("videonsa.evals.field").joinpath(_FILE).read_text("utf-8"))
    )
    return found
