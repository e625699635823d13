"""How the tests build the tree of small videos."""

from pathlib import Path

from transformers import PreTrainedTokenizerFast

import videonsa
from videonsa.data.build import BuildOptions, build, open_sources
from videonsa.data.build_report import Report
from videonsa.data.filter import FilterOptions

EMBEDDED = Path(videonsa.__file__).parent / "assets/embedded"
MAX_TOKENS = 8000
HASH = "0" * 64


def load_tokenizer() -> PreTrainedTokenizerFast:
    """Without the config beside it, which only slows it down."""
    return PreTrainedTokenizerFast(tokenizer_file=str(EMBEDDED / "tokenizer.json"))


def build_tree(tree: Path, out: Path, *, workers: int = 1, max_frames: int = 550) -> Report:
    """Build with the embedded tokenizer; the limit of tokens is that of the tree."""
    sources, notes = open_sources([str(tree)])
    out.mkdir(exist_ok=True)
    return build(
        sources,
        out,
        options=BuildOptions(
            filter=FilterOptions(max_tokens=MAX_TOKENS, max_frames=max_frames),
            model="embedded",
            tokenizer_hash=HASH,
            workers=workers,
        ),
        tokenizer=load_tokenizer(),
        notes=notes,
    )
