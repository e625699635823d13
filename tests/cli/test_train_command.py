import json

import pytest
import yaml
from conftest import TOKENIZER, write_clip
from small_manifest import record, write_manifest

from videonsa.cli.main import main
from videonsa.data.records import VideoRef
from videonsa.train.reading import read_recipe


@pytest.fixture
def settings(tmp_path, tiny_folder):
    from transformers import AutoTokenizer

    clip = write_clip(tmp_path / "clip.mp4", num_frames=4)
    path = tmp_path / "manifest.parquet"
    records = [record("clip", VideoRef(path=str(clip)))]
    write_manifest(path, records, AutoTokenizer.from_pretrained(TOKENIZER))
    chosen = {
        "model.base": tiny_folder,
        "data.manifest": path,
        "data.context": 64,
        "attention.block_size": 8,
        "optimizer.steps": 2,
        "optimizer.batch_size": 1,
    }
    return [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]


def test_show_prints_every_setting(capsys):
    assert main(["train", "videonsa-7b", "--show", "--set", "run.seed=5"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["run"]["seed"] == 5
    assert shown["optimizer"]["learning_rate"] == read_recipe("videonsa-7b").optimizer.learning_rate


def test_a_model_is_trained_evaluated_on_the_suite_and_logged(settings, tmp_path, capsys):
    out = tmp_path / "run"
    asked = ["run.evaluate_every=2", "run.evaluate_lengths=[1k]", "run.evaluate_samples=1"]
    asked += ["run.evaluate_suite=2", "run.evaluate_kinds=[needle, direction]"]
    asked += ["run.report_to=[tensorboard]"]
    settings += [word for setting in asked for word in ("--set", setting)]
    assert main(["train", "tiny", *settings, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": str(out / "model"), "recipe": "tiny"}
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    (scores,) = [line for line in log if "eval/accuracy/all" in line]
    assert scores["step"] == 2
    assert 0 <= scores["eval/accuracy/1024_tokens"] <= 1
    answers = (out / "eval/step-2/samples.jsonl").read_text().splitlines()
    assert {json.loads(answer)["kind"] for answer in answers} == {"needle", "direction"}
    assert 0 <= scores["eval/accuracy/likeliest"] <= 1
    assert list(out.glob("runs/*/events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "tiny"], "data.manifest is not set: build one with 'videonsa data build'"),
        (["train", "tiny", "--set", "run.sed=1"], "did you mean run.seed?"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
