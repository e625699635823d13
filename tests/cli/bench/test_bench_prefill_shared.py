"""`videonsa bench prefill` under torchrun, on CPUs: two processes share a sequence."""

import json

import pytest
from ranks import run_ranks

from videonsa.cli.main import main

SMALL = ["bench", "prefill", "--model", "tiny", "--device", "cpu", "--frame", "56x56"]
TINY = [*SMALL, "--tokens", "40", "--repeats", "1"]


def test_two_processes_share_the_prefill_and_are_compared_with_one(tmp_path):
    one, path = tmp_path / "prefill.json", tmp_path / "prefill_2.json"
    assert main([*TINY, "--video", "none", "--out", str(one)]) == 0
    alone = json.loads(one.read_text())
    # The threads of this process and of those that it starts may differ, and with them the device.
    threads = int(alone["machine"]["device"].split()[-2])
    command = [*TINY, "--one", str(one), "--out", str(path)]
    ended = run_ranks(main, command, folder=tmp_path, threads=threads)
    assert not any(ended.statuses), ended.output
    shared = json.loads(path.read_text())
    assert shared["processes"] == 2
    (length,), (of_one,) = shared["lengths"], alone["lengths"]
    assert length["tokens"] == of_one["tokens"] == 40
    for stage, before in zip(length["stages"], of_one["stages"], strict=True):
        assert stage["name"] == before["name"]
        assert stage["efficiency"] == pytest.approx(before["ms"] / (2 * stage["ms"]))
    assert "tiny, 40 video tokens, 2 processes" in ended.output


def test_a_result_of_one_process_is_not_compared_with_itself(tmp_path, capsys):
    assert main([*TINY, "--one", str(tmp_path / "prefill.json")]) == 2
    assert "with one process: want several, by torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--video", "talk.mp4"], "--video talk.mp4 with 2 processes"),
        (["--peers"], "--peers with 2 processes"),
        (["--weights", "fp8"], "--weights fp8 with 2 processes"),
        (["--frame", "56x56,56x84"], "--frame 56x56,56x84 with 2 processes"),
        (["--one", "no.json"], "--one no.json: want a JSON file that this command wrote"),
    ],
)
def test_what_several_processes_do_not_measure_is_one_line(options, message, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*TINY, *options]) == 2
    assert message in capsys.readouterr().err
