"""How the figures look, on a light ground and on a dark one; they need matplotlib."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from videonsa.errors import missing_package

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from videonsa.analysis.finding import Finding


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Colours of a figure."""

    ground: str
    text: str
    muted: str
    """Of remarks, axes and what serves for comparison only."""
    grid: str
    series: tuple[str, ...]
    """Told apart by readers who see few colours, too."""

    @property
    def branches(self) -> dict[str, str]:
        """Colour of each branch, the same in all figures."""
        return dict(zip(("compressed", "selected", "window"), self.series, strict=False))

    def clean(self, axes: "Axes", *, title: str = "", remark: str = "") -> None:
        """Axes without a box: a title, a smaller remark below it, and a quiet grid."""
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=self.grid, linewidth=0.8)
        axes.set_axisbelow(True)
        if title:
            axes.set_title(f"{title}\n" if remark else title, loc="left", fontweight="bold")
        if remark:
            axes.text(0, 1.02, remark, transform=axes.transAxes, fontsize=8.5, color=self.muted)


LIGHT = Look(
    ground="#ffffff",
    text="#1b1b1b",
    muted="#5c5c5c",
    grid="#e3e3e3",
    series=("#0072b2", "#d55e00", "#008f68", "#b0538f", "#9a7400", "#4b4b9c", "#7a7a7a"),
)
DARK = Look(
    ground="#15181c",
    text="#ececec",
    muted="#a9adb3",
    grid="#343a41",
    series=("#5ab4f0", "#ff9a52", "#3fd0a4", "#e79bcb", "#e6c34a", "#a6a6f5", "#b5b5b5"),
)


def picture(finding: "Finding", look: Look, *, kind: Literal["png", "svg"] = "png") -> bytes:
    """The figure of a finding as a file.

    Raises:
        UsageError: matplotlib is not installed.
    """
    with _styled(look):
        from matplotlib.figure import Figure

        figure = Figure(figsize=finding.size, dpi=120, layout="constrained")
        finding.draw(figure, look)
        content = io.BytesIO()
        unstated = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        figure.savefig(content, format=kind, metadata=unstated)
    return content.getvalue()


@contextmanager
def _styled(look: Look) -> Iterator[None]:
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise missing_package("matplotlib", extra="eval") from error
    settings: Any = {
        "figure.facecolor": look.ground,
        "savefig.facecolor": look.ground,
        "axes.facecolor": look.ground,
        "axes.edgecolor": look.muted,
        "axes.labelcolor": look.text,
        "axes.titlecolor": look.text,
        "text.color": look.text,
        "xtick.color": look.muted,
        "ytick.color": look.muted,
        "legend.frameon": False,
        "font.size": 10,
        "svg.hashsalt": "videonsa",
    }
    with rc_context(settings):
        yield
