"""docs/tracing.md tells what `--trace` prints, line by line, and names files that exist."""

import re
from pathlib import Path

from videonsa.cli.main import main
from videonsa.inference.trace import STAGES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tracing.md").read_text("utf-8")
QUESTION = "What colour is the square?"


def trace_lines(text):
    return [line for line in text.splitlines() if re.match(r"\d [a-z]+/[a-z]+ ", line)]


def run_trace(tiny_folder, clip_path, capsys, *options):
    model = ["--model", str(tiny_folder), "--device", "cpu", "--max-new-tokens", "3"]
    assert main(["ask", str(clip_path), QUESTION, *model, "--trace", *options]) == 0
    return trace_lines(capsys.readouterr().err)


def test_the_page_shows_the_lines_that_trace_prints(tiny_folder, clip_path, capsys):
    printed = run_trace(tiny_folder, clip_path, capsys)
    assert [line.replace(str(clip_path), "clip.mp4") for line in printed] == trace_lines(PAGE)


def test_the_table_names_the_stages_in_their_order():
    rows = re.findall(r"^\| (\d) \| `([a-z/_]+)\.py` \|", PAGE, re.MULTILINE)
    assert [(int(number), name) for number, name in rows] == list(enumerate(STAGES, start=1))


def test_every_file_that_the_page_names_exists():
    names = re.findall(r"`([a-z]+/[a-z_]+\.py)`", PAGE)
    assert len(names) >= len(STAGES)
    for name in names:
        assert (ROOT / "src/videonsa" / name).is_file(), name


def test_dense_attention_passes_no_ops(tiny_folder, clip_path, capsys):
    lines = run_trace(tiny_folder, clip_path, capsys, "--method", "dense")
    assert lines[6:] == [
        "7 ops/nsa           not passed: attention is dense",
        "8 ops/reference     not passed: attention is dense",
    ]
