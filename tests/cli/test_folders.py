"""Folders of results: one writer each, and a disk that is full is told in one line."""

import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ranks import warm_context

from videonsa.cli.main import main
from videonsa.disk import HOLDER

BUILD = ("data", "build", "clips:count=100000,patches=8", "--model", "embedded")
EVAL = ("eval", "synthetic", "--model", "oracle", "--lengths", "4k", "--samples", "9000")


@pytest.mark.parametrize("command", [BUILD, EVAL], ids=lambda command: " ".join(command[:2]))
def test_who_comes_second_is_told_who_holds_the_folder_and_does_no_harm(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*command, "--out", str(tmp_path)]
    first = warm_context().Process(target=main, args=(arguments,))
    first.start()
    try:
        while not (tmp_path / HOLDER).exists() and first.is_alive():
            time.sleep(0.05)
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        work = " ".join(command[:2])
        assert f"{tmp_path} is being written by {work} (process {first.pid} on " in told
        assert first.is_alive(), "the first goes on"
        assert json.loads((tmp_path / HOLDER).read_text())["process"] == first.pid
    finally:
        first.kill()
        first.join()


@contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """The system refuses to make a file longer than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("most_bytes", [0, 300, 3000])
@pytest.mark.parametrize(
    "command",
    [
        (*BUILD[:2], "clips:count=40,patches=8", *BUILD[3:], "--min-frames", "0"),
        (*EVAL[:-1], "2"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_full_disk_is_one_line_and_nothing_half_written_counts_as_whole(
    command: tuple[str, ...],
    most_bytes: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with full_disk(most_bytes):
        status = main([*command, "--out", str(tmp_path)])
    told = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert (status, len(told)) == (2, 1)
    assert "file too large: free some, or write to another disk" in told[0]
    assert "manifest.parquet" not in os.listdir(tmp_path)
    assert not list(tmp_path.glob(".*.partial"))
