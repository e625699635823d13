"""`METHODS`: the methods that have a name; `parse_method`: a method as text."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

from videonsa.errors import UsageError
from videonsa.models.methods.dense import Dense
from videonsa.models.methods.nsa import nsa_method
from videonsa.models.methods.options import read_options
from videonsa.models.methods.protocol import BEHIND, DENSE, SPARSE, AttentionMethod
from videonsa.ops.spec import NSASpec

_NEXT = re.compile(r"\+(?=[a-z][^:,=+/]*(?:$|[:+]))")
"""Where another method begins: a number or a path may hold a plus sign too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodEntry:
    """What there is to say of a method, and where its class is; no other module is imported."""

    where: str
    """Its class, `module:Class`."""
    what: str
    """What it is, in one line."""
    paper: str
    """Where it was published."""
    code: str
    """Where its authors' code is, and which commit was read; empty where there is none."""
    images: bool = True
    """Whether it is meant for images."""
    videos: bool = True
    """Whether it is meant for videos."""
    trains: bool = False
    """Whether a recipe can train it."""
    limits: str = ""
    """What else it cannot do, in one line."""

    def load(self) -> type[AttentionMethod]:
        """Import its class."""
        module, name = self.where.split(":")
        found: type[AttentionMethod] = getattr(import_module(module), name)
        return found


METHODS: Mapping[str, MethodEntry] = MappingProxyType(
    {
        DENSE: MethodEntry(
            where="videonsa.models.methods.dense:Dense",
            what="every token attends to all tokens before it, as in Qwen2.5-VL",
            paper="Qwen2.5-VL, arXiv 2502.13923",
            code="",
            trains=True,
        ),
        SPARSE: MethodEntry(
            where="videonsa.models.methods.nsa:NSA",
            what="text attends densely, vision by compressed, selected and window branches",
            paper="VideoNSA, arXiv 2510.02295; NSA, arXiv 2502.11089",
            code="Espere-1119-Song/VideoNSA 377eeb9",
            trains=True,
            limits="needs weights with gates; options that are not given are the model's own",
        ),
        "tri_shape": MethodEntry(
            where="videonsa.models.methods.tri_shape:TriShape",
            what="first keys and a window for all rows, all keys for the last rows",
            paper="SCBench, arXiv 2412.10319",
            code="microsoft/MInference fb56c91",
            limits="sparse where a prompt is read, one sample at once; decoding is dense",
        ),
        "minference": MethodEntry(
            where="videonsa.models.methods.minference:MInference",
            what="columns and diagonals of each head, chosen by the last rows",
            paper="MInference, arXiv 2407.02490",
            code="microsoft/MInference fb56c91",
            limits="published patterns are a text model's; sparse where a prompt is read, one "
            "sample at once; decoding is dense",
        ),
        "flexprefill": MethodEntry(
            where="videonsa.models.methods.flexprefill:FlexPrefill",
            what="blocks of keys along columns and diagonals, or anywhere, chosen by the last rows",
            paper="FlexPrefill, arXiv 2502.20766",
            code="bytedance/FlexPrefill a24b27b",
            limits="sparse where a prompt is read, one sample at once; decoding is dense",
        ),
        "xattention": MethodEntry(
            where="videonsa.models.methods.xattention:XAttention",
            what="blocks of keys that hold a share of each row, by sums of antidiagonals",
            paper="XAttention, arXiv 2503.16428",
            code="mit-han-lab/x-attention e379887",
            limits="sparse where a prompt is read, one sample at once; decoding is dense",
        ),
        "fastv": MethodEntry(
            where="videonsa.models.methods.fastv:FastV",
            what="vision tokens leave after the first layers, by the last token's attention",
            paper="FastV, arXiv 2403.06764",
            code="pkunlp-icler/FastV d165972",
            limits="one sample at a time",
        ),
        "visionzip": MethodEntry(
            where="videonsa.models.methods.visionzip:VisionZip",
            what="each frame keeps the tokens it attends to most, and a few that stand for others",
            paper="VisionZip, arXiv 2412.04467",
            code="dvlab-research/VisionZip 3151f6d",
            limits="published for images: here frame by frame, from the tower's last block",
        ),
        "vscan": MethodEntry(
            where="videonsa.models.methods.vscan:VScan",
            what="a frame's tokens are chosen in the tower, and again inside the layers",
            paper="VScan, arXiv 2505.22654",
            code="Tencent/SelfEvolvingAgent a82450e",
            limits="published for images: here frame by frame; layer_ratio=1 is read once",
        ),
        "evs": MethodEntry(
            where="videonsa.models.methods.evs:EVS",
            what="the first frame stays, and the tokens that changed most since the frame before",
            paper="EVS, arXiv 2510.14624",
            code="vllm-project/vllm 094f117, vllm/multimodal/evs.py",
            limits="images stay whole",
        ),
        "flashvid": MethodEntry(
            where="videonsa.models.methods.flashvid:FlashVID",
            what="diverse tokens of each frame stay, others are merged along time and in frames",
            paper="FlashVID, arXiv 2602.08024",
            code="Fanziyang-v/FlashVID 3efef7e",
            limits="published for videos alone; layer_ratio=1 is read once",
        ),
    }
)
"""By name. A new method is one more entry, and its class."""


class Named(NamedTuple):
    """A method of a text, and what the text tells it."""

    name: str
    method: type[AttentionMethod]
    options: dict[str, Any]

    @property
    def has_behind(self) -> bool:
        """Whether it leaves attending to a method behind it."""
        return has_behind(self.method)


def has_behind(method: type[AttentionMethod]) -> bool:
    """Whether another method attends in its place: `NAME+METHOD` is then understood."""
    return BEHIND in getattr(method, "__dataclass_fields__", {})


def read_method(text: str) -> tuple[Named, ...]:
    """The methods of a text, the one that attends last.

    Args:
        text: `NAME[:key=value,...][+NAME[:...]]`.

    Raises:
        UsageError: an unknown name, options it does not have, or methods that do not go together.
    """
    found = []
    for part in _NEXT.split(text) if isinstance(text, str) else [text]:
        name, _, options = part.partition(":") if isinstance(part, str) else (part, "", "")
        if not isinstance(name, str) or name not in METHODS:
            raise UsageError(f"method={name!r}: want one of {_names()}, or a method object")
        method = METHODS[name].load()
        found.append(Named(name, method, read_options(name, method, options)))
    for one, behind in pairwise(found):
        if not one.has_behind:
            raise UsageError(
                f"method {one.name}+{behind.name}: {one.name!r} says itself how tokens attend: "
                "want a method that compresses tokens before the +"
            )
    return tuple(found)


def attending_class(named: Sequence[Named]) -> type[AttentionMethod]:
    """The class that says how the tokens attend, of what `read_method` found."""
    return Dense if named[-1].has_behind else named[-1].method


def parse_method(text: str, *, spec: NSASpec | None = None) -> AttentionMethod:
    """The method that a text names, for example `xattention:threshold=0.8`.

    Args:
        text: `NAME[:key=value,...][+NAME[:...]]`; options that are left out are as published, and
            those of "nsa" as `spec` has them.
        spec: the model's own NSA; None: the paper's.

    Raises:
        UsageError: as `read_method`, or values outside their domain.
    """
    found: AttentionMethod | None = None
    for one in reversed(read_method(text)):
        method = one.method.of_model(NSASpec() if spec is None else spec)
        method = method.with_options(**one.options)
        if found is not None:
            method = method.attending_by(found)
        found = method
    assert found is not None, "a text names one method at least"
    return found


def name_of(asked: AttentionMethod | str) -> str:
    """The name of a method, without its options and what is behind it.

    Raises:
        UsageError: a text of none.
    """
    return asked.name if isinstance(asked, AttentionMethod) else read_method(asked)[0].name


def named_method(name: str, spec: NSASpec) -> AttentionMethod:
    """The method that a config states.

    Raises:
        UsageError: another name.
    """
    if name == DENSE:
        return Dense()
    if name == SPARSE:
        return nsa_method(spec)
    raise UsageError(f"method={name!r}: want one of {DENSE!r} and {SPARSE!r}, or a method object")


def _names() -> str:
    *first, last = map(repr, METHODS)
    return f"{', '.join(first)} and {last}"
