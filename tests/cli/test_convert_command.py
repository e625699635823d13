"""`videonsa convert`."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import videonsa
from videonsa.cli.main import EXIT_USER, main
from videonsa.cli.values import size


def test_help_has_examples_json_and_debug(capsys):
    with pytest.raises(SystemExit) as left:
        main(["convert", "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "videonsa convert Enxin/VideoNSA" in text.split("examples:")[1]
    assert "--json" in text
    assert "--debug" in text


def test_what_was_written_answers_as_the_source(tiny_folder, clip_path, tmp_path, capsys):
    target = tmp_path / "target"
    options = ["--layout", "transformers", "--max-shard-size", "0.2MB"]
    assert main(["convert", str(tiny_folder), str(target), *options]) == 0
    out, err = capsys.readouterr()
    assert out.endswith(f" GB in {target}\n")
    lines = err.splitlines()
    assert len(lines) == len(list(target.glob("*.safetensors"))) > 1
    assert all(line.startswith(f"wrote file {i} of") for i, line in enumerate(lines, start=1))
    answers = [
        videonsa.load(folder, device="cpu").ask(clip_path, "What moves?", max_new_tokens=4).text
        for folder in (tiny_folder, target)
    ]
    assert answers[0] == answers[1]


def test_json_says_what_was_written(tiny_folder, tmp_path, capsys):
    target = tmp_path / "target"
    arguments = ["convert", str(tiny_folder), str(target), "--dtype", "bfloat16", "--json"]
    assert main(arguments) == 0
    done = json.loads(capsys.readouterr().out)
    tensors = load_file(target / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert done == {
        "target": str(target),
        "layout": "hub",
        "tensors": len(tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "files": sorted(path.name for path in target.iterdir()),
        "notes": [],
    }


def test_the_embedded_model_is_a_source_too(tmp_path, capsys):
    assert main(["convert", "embedded", str(tmp_path / "target")]) == 0
    assert (tmp_path / "target" / "tokenizer.json").is_file()


def test_notes_are_told(tiny_folder, tmp_path, capsys):
    dense, gated = tmp_path / "dense", tmp_path / "gated"
    assert main(["convert", str(tiny_folder), str(dense)]) == 0
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config | {"attention": "dense"}))
    tensors = load_file(dense / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "g_proj" not in name}
    save_file(kept, dense / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert main(["convert", str(dense), str(gated), "--fresh-gates", "released"]) == 0
    assert "note       the gates are fresh (gate_init 'released')" in capsys.readouterr().err
    assert load_file(gated / "model.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize(
    ("options", "came", "wanted"),
    [
        (["--max-shard-size", "big"], "'big' is no size", "5GB"),
        (["--max-shard-size", "0GB"], "'0GB' is no size", "5GB"),
        (["--max-shard-size", "-1GB"], "--max-shard-size", "--help"),
        (["--layout", "flat"], "flat", "transformers"),
        (["--fresh-gates", "half"], "have gates", "--fresh-gates"),
    ],
)
def test_bad_options_are_one_line(tiny_folder, tmp_path, capsys, options, came, wanted):
    assert main(["convert", str(tiny_folder), str(tmp_path / "target"), *options]) == EXIT_USER
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert came in err
    assert wanted in err
    assert not list(tmp_path.iterdir())


def test_an_existing_target_needs_force(tiny_folder, tmp_path, capsys):
    arguments = ["convert", str(tiny_folder), str(tmp_path / "target")]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(arguments) == EXIT_USER
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("500MB", 500_000_000), ("1.5 GB", 1_500_000_000), ("20k", 20_000), ("7", 7), ("3b", 3)],
)
def test_sizes_are_counted_in_powers_of_1000(text, wanted):
    assert size(text) == wanted


@pytest.mark.parametrize("options", [[], ["--force"]])
def test_a_target_that_is_a_symlink_to_itself_is_refused(options, tiny_folder, tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")
    assert main(["convert", str(tiny_folder), str(tmp_path / "loop"), *options]) == EXIT_USER
    err = capsys.readouterr().err
    assert f"{tmp_path / 'loop'} exists" in err
    assert err.count("\n") == 1
