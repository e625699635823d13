"""`videonsa bench train` on a CPU: both parts, a shared sequence, and bad options in one line."""

import json

import pytest
from ranks import run_ranks

from videonsa.bench.training import TrainRequest, recipe_of
from videonsa.cli.main import main

TINY = ["bench", "train", "--model", "tiny", "--device", "cpu", "--tokens", "64", "--repeats", "1"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "train.json"
    assert main([*TINY, "--peak-tflops", "0.1", "--out", str(path)]) == 0
    return path


def test_layers_and_the_whole_step_are_measured_with_both_attentions(alone):
    result = json.loads(alone.read_text())
    assert [(run["part"], run["attention"]) for run in result["runs"]] == [
        ("layers", "nsa"),
        ("layers", "dense"),
        ("step", "nsa"),
        ("step", "dense"),
    ]
    for run in result["runs"]:
        assert run["error"] is None
        assert (run["tokens"], run["rows"], run["layers"]) == (64, 128, 2)
        assert len(run["times_ms"]) == 1
        assert len(run["losses"]) == len(run["grad_norms"]) == 2  # the untimed step's too
        assert run["tokens_per_second"] == pytest.approx(128e3 / run["ms"])
        assert run["mfu"] == pytest.approx(run["flops"] / run["ms"] / 1e8)
    layers, step = result["runs"][0], result["runs"][2]
    assert layers["forward_backward_ms"] == layers["ms"]
    assert step["forward_backward_ms"] < step["ms"]
    assert step["flops"] > layers["flops"]  # the tower's
    assert [ratio["part"] for ratio in result["ratios"]] == ["layers", "step"]


@pytest.mark.slow
def test_two_processes_share_the_sequence_and_are_compared_with_one(alone, tmp_path):
    path = tmp_path / "train_2.json"
    options = ["--parts", "layers", "--one", str(alone), "--out", str(path)]
    result = json.loads(alone.read_text())
    # The threads of this process and of those that it starts may differ, and with them the device.
    threads = int(result["machine"]["device"].split()[-2])
    ended = run_ranks(main, [*TINY, *options], folder=tmp_path, threads=threads)
    assert not any(ended.statuses), ended.output
    shared = json.loads(path.read_text())
    assert shared["processes"] == 2
    assert [run["attention"] for run in shared["runs"]] == ["nsa", "dense"]
    for run, own in zip(shared["runs"], result["runs"][:2], strict=True):
        assert run["efficiency"] == pytest.approx(own["ms"] / (2 * run["ms"]))


def test_processes_have_sequences_of_their_own_where_they_share_none(capsys):
    request = TrainRequest(model="tiny", tokens=(64,), sequence=2)
    recipe = recipe_of(request, 8)
    assert (recipe.parallel.sequence, recipe.optimizer.batch_size) == (2, 4)
    assert main([*TINY, "--sequence", "2"]) == 2
    assert "1 processes with parallel.sequence=2: want a multiple" in capsys.readouterr().err


def test_weights_are_not_sharded_over_one_process(capsys):
    assert main([*TINY, "--fsdp"]) == 2
    assert (
        "parallel.fsdp=true with 1 processes on CPUs: want two or more" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "8B", "--model 8B: want one of tiny, 3B, 7B"),
        ("--model", "7B", "--model 7B with --device cpu: want tiny"),
        ("--layers", "3", "--layers 3: the tiny model has 2"),
        ("--layers", "0", "--layers 0: want at least 1"),
        ("--repeats", "0", "--repeats 0: want at least 1"),
        ("--parts", "layers,tower", "--parts tower: want some of layers, step"),
        ("--frame", "30x56", "--frame '30x56': want HEIGHTxWIDTH in multiples of 28"),
        ("--peak-tflops", "-1", "--peak-tflops -1: want more than 0"),
        ("--one", "no.json", "--one no.json: want a JSON file that this command wrote"),
    ],
)
def test_bad_options_are_one_line(option, value, message, capsys):
    assert main([*TINY, option, value]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_as_the_file_is_refused_before_anything_runs(tmp_path, capsys):
    assert main([*TINY, "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err == f"videonsa: error: --out {tmp_path}: it is a folder: name a file\n"


def test_a_result_of_something_else_is_not_compared_with(alone, tmp_path, capsys):
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(alone.read_text()) | {"model": "3B"}))
    assert main([*TINY, "--one", str(other), "--out", str(tmp_path / "train.json")]) == 2
    assert "--one: its model is '3B', not 'tiny'" in capsys.readouterr().err
