"""`FINDINGS`: what `videonsa analyze` can measure."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_type_hints

from videonsa.errors import UsageError

if TYPE_CHECKING:
    from videonsa.analysis.finding import Finding


@dataclass(frozen=True, kw_only=True, slots=True)
class FindingEntry:
    """What there is to say of a finding, and where its class is; no other module is imported."""

    where: str
    """Its class, `module:Class`."""
    title: str
    what: str
    """What is measured, in one line."""
    claim: str
    """What the paper says, in one or two sentences."""
    tokens: int = 1024
    """Of a video of a suite, where the command is not told."""
    clip_tokens: int = 384
    """Of a clip, likewise: as in training."""
    videos: int = 4
    """Of each task, likewise."""
    asks: bool = True
    """Whether videos are shown and questions asked."""

    def load(self) -> "type[Finding]":
        """Import its class."""
        module, name = self.where.split(":")
        found: type[Finding] = getattr(import_module(module), name)
        return found


FINDINGS: Mapping[str, FindingEntry] = MappingProxyType(
    {
        "scaling": FindingEntry(
            where="videonsa.analysis.scaling:Scaling",
            title="Scaling: context, and tokens of a frame against frames",
            what="accuracy and cost against context, beside dense attention and random blocks",
            claim="Accuracy grows with context up to 128K on TimeScope and LongVideoBench and "
            "peaks at 64K elsewhere; which tokens per frame are best depends on the task (Fig. 2, "
            "Tables 20 to 27).",
            tokens=4096,
            clip_tokens=768,
        ),
        "branches": FindingEntry(
            where="videonsa.analysis.branches:Branches",
            title="Branches: gates, heads, knock-outs and static gates",
            what="gates by layer, head, branch and task, and accuracy with branches ablated",
            claim="Use of the branches depends on layer and task: compression is high in most "
            "layers, selection and window fade in layers 22 to 26 (Fig. 4), and single branches or "
            "static mean gates lose accuracy (Tables 2 and 34).",
        ),
        "budget": FindingEntry(
            where="videonsa.analysis.budget:Budget",
            title="Budget: selected blocks against window, and how many keys",
            what="accuracy over blocks and window at one budget, and over the budget",
            claim="At a fixed budget K = n s + w there is a best allocation, near that of "
            "training; more blocks beat more window (section 4; Tables 29 and 33 contradict it).",
        ),
        "transfer": FindingEntry(
            where="videonsa.analysis.transfer:Transfer",
            title="Sparse-trained weights run dense, and the other way round",
            what="accuracy of the weights under the attention they were not trained with",
            claim="NSA-trained weights under dense attention stay close to dense training and "
            "below NSA itself (Table 3: LongVideoBench 56.1, 59.4 with NSA).",
        ),
        "latency": FindingEntry(
            where="videonsa.analysis.latency:Latency",
            title="Latency of the branches",
            what="time of each branch against length, beside dense attention; no video is shown",
            claim="The compressed branch takes most of the time as context grows from 1K to 128K "
            "(Fig. 6, without numbers).",
            asks=False,
        ),
        "sinks": FindingEntry(
            where="videonsa.analysis.sinks:Sinks",
            title="Attention sinks",
            what="share of keys that are attention sinks, by branch, depth and position",
            claim="Sinks are 1.2 % of the keys in the compressed branch, 0.1 % in the selected, "
            "0.3 % in the window and 0.3 % together; in dense attention they grow with depth.",
        ),
        "selection": FindingEntry(
            where="videonsa.analysis.selection:Selection",
            title="What is selected",
            what="which frames are selected, how far neighbours agree, and recall of the evidence",
            claim="Selection keeps salient blocks; kernels count on neighbours that share them.",
        ),
    }
)
"""By name, in the order of the report. A new finding is one more entry, and its class."""


def finding_from(content: dict[str, Any]) -> "Finding":
    """The finding that JSON holds.

    Raises:
        UsageError: an unknown one, or damaged.
    """
    name = str(content.get("finding"))
    if name not in FINDINGS:
        raise UsageError(f"a finding {name!r}: want one of {', '.join(FINDINGS)}")
    return FINDINGS[name].load().from_json(content)


def options_from(kind: type, pairs: list[str]) -> Any:
    """The options of a finding, with those of `key=value` texts changed.

    Args:
        kind: the dataclass of the options.
        pairs: what the command was told, the values of a tuple with "/" between.

    Raises:
        UsageError: what is no `key=value`, an unknown key, or a value of another type.
    """
    from videonsa.models.methods.options import describe_kind, read_value

    hints = get_type_hints(kind)
    known = [one.name for one in fields(kind)]
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            wanted = f"one of {', '.join(known)} as KEY=VALUE" if known else "none, it has none"
            raise UsageError(f"--set {pair!r}: want {wanted}")
        try:
            changes[key] = read_value(hints[key], value)
        except ValueError:
            raise UsageError(f"--set {pair!r}: want {describe_kind(hints[key])}") from None
    return replace(kind(), **changes)
