"""Of each benchmark: its rule in the paper's time, how 0.7.3 differs, and what it reports."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

from videonsa.evals.field.benchmarks import BENCHMARKS
from videonsa.evals.field.scoring import paper_rules as paper
from videonsa.evals.field.scoring.paper_rules import Doc, Parsed

PAPER, LMMS = "paper", "lmms-0.7.3"
SCORINGS = (PAPER, LMMS)

PaperRule = Callable[[Doc, str], Parsed]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How the answers of a benchmark are scored and counted."""

    paper: PaperRule | None = None
    """None: there was none, or it is the one of 0.7.3."""
    same: bool = False
    """Whether the rule of 0.7.3 gives every answer the same score."""
    differs: str = ""
    """What 0.7.3 does otherwise, or why there is no rule of the paper's time."""
    categories: tuple[str, ...] = ()
    """Fields of a document by which the benchmark reports; one may hold several values."""
    mean_of: str | None = None
    """The field whose values count the same, however many samples each has; None: samples do."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Values of that field, and of which value they are equal parts."""
    kinds: int | None = None
    """How many values (or wholes) of that field the data set has."""
    draws: bool = False
    """Whether an answer without an option is given one at random."""


_LETTERS = "0.7.3 looks for (A), A., A: and other forms of a letter in order, and takes the last"
_MLVU = Rules(
    paper=paper.mlvu,
    differs=f"the character before ')', else the whole answer; {_LETTERS}",
    categories=("task_type",),
    mean_of="task_type",
    kinds=9,
)
_SAME_LENGTHS = ("length", "type")

RULES: Mapping[str, Rules] = MappingProxyType(
    {
        "longvideobench_val_v": Rules(
            same=True, draws=True, categories=("duration_group", "question_category")
        ),
        "mlvu_dev": replace(_MLVU, kinds=7),
        "mlvu_test": _MLVU,
        "timescope": Rules(paper=paper.timescope, same=True, categories=_SAME_LENGTHS),
        "longtimescope": Rules(paper=paper.longtimescope, same=True, categories=_SAME_LENGTHS),
        "tomato": Rules(
            paper=paper.tomato, same=True, categories=("reason_type", "demonstration_type")
        ),
        "vsibench": Rules(
            paper=paper.vsibench,
            differs="a number is the first word; 0.7.3 takes the first number anywhere, also one "
            "in words",
            categories=("question_type",),
            mean_of="question_type",
            parts={
                f"object_rel_direction_{level}": "object_rel_direction"
                for level in ("easy", "medium", "hard")
            },
            kinds=8,
        ),
        "lsdbench": Rules(paper=paper.lsdbench, same=True),
        "videoevalpro": Rules(
            same=True,
            differs="gpt-4o judges the answers; lmms-eval asks it where OPENAI_API_KEY is set",
            categories=("qa_type",),
        ),
        "videomme": Rules(
            paper=paper.first_of_four,
            differs=f"the first letter from A to D; {_LETTERS}",
            categories=("duration", "domain", "task_type"),
        ),
        "videomme_v2": Rules(
            differs="it is younger than the paper", categories=("level", "group_type")
        ),
        "lvbench": Rules(
            paper=paper.first_of_four,
            differs=f"the first letter from A to D; {_LETTERS}",
            categories=("question_type",),
        ),
        "mvbench": Rules(same=True, mean_of="task", categories=("task",), kinds=20),
    }
)


def paper_rule(benchmark: str, *, seed: str) -> PaperRule | None:
    """The rule of the paper's time.

    Args:
        benchmark: of `BENCHMARKS`.
        seed: of a draw.
    """
    assert benchmark in BENCHMARKS
    if benchmark == "longvideobench_val_v":
        return partial(paper.longvideobench, seed=seed)
    return RULES[benchmark].paper
