"""`Trace`: the shapes of one question at each stage, in the order of docs/tracing.md."""

from collections.abc import Callable

from torch import Tensor

from videonsa.models.methods import Attended
from videonsa.models.recorder.protocol import Recorder
from videonsa.models.step import StepTokens
from videonsa.ops.reference import rows_per_chunk
from videonsa.ops.spec import BRANCHES

STAGES = (
    "cli/ask",
    "video/decode",
    "video/processing",
    "inference/engine",
    "models/modeling",
    "models/attention",
    "ops/nsa",
    "ops/reference",
)
"""The modules that a question passes, first to last."""


class Trace(Recorder):
    """Tells `emit` one line a stage; pass one to `VideoQA.ask` as `trace=`.

    The model knows it as a recorder; it reports the first step of the first layer and stores no
    tensor.
    """

    wants_branches = True

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._num_vision = 0
        self._prefilled = False

    def stage(self, name: str, **values: object) -> None:
        """Report what a stage works on; `name` is one of `STAGES`."""
        self._line(name, ", ".join(f"{key} {_shown(value)}" for key, value in values.items()))

    def _skip(self, name: str, reason: str) -> None:
        self._line(name, f"not passed: {reason}")

    def _line(self, name: str, text: str) -> None:
        self._emit(f"{STAGES.index(name) + 1} {name:<17} {text}")

    def begin_step(self, tokens: StepTokens) -> None:
        """Take note of how many vision rows there are."""
        if not self._prefilled:
            self._num_vision = int(tokens.vision_mask.sum())

    def record(self, layer: int, q: Tensor, k: Tensor, attended: Attended) -> None:
        """Report the stages from the embedded prompt to the attention of the first layer."""
        if self._prefilled:
            return
        self._prefilled = True
        length, heads, head_dim = q.shape[1:]
        num_vision, result = self._num_vision, attended.result
        self.stage("models/modeling", hidden=[1, length, heads * head_dim], vision_rows=num_vision)
        if result is None or attended.spec is None:
            self.stage("models/attention", q=q, k=k, v=k)
            self._skip("ops/nsa", "attention is dense")
            self._skip("ops/reference", "attention is dense")
            return
        self.stage("models/attention", q=q, k=k, v=k, gates=[1, length, heads, len(BRANCHES)])
        self.stage("ops/nsa", selected_blocks=result.selected_blocks, out=q)
        if attended.spec.stream == "sequence":
            self._skip("ops/reference", "the released preset has ops/released")
            return
        rows = min(rows_per_chunk(q[:, :num_vision], k[:, :num_vision]), num_vision)
        chunks = -(-num_vision // max(rows, 1))
        self.stage("ops/reference", masks=[rows, num_vision], query_chunks=chunks)


def _shown(value: object) -> str:
    """A tensor as its shape and dtype, anything else as it prints."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return str(value)
