"""`videonsa ask`: the answer on stdout, everything else on stderr."""

import json
import shutil
import subprocess
import sys

import pytest
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

import videonsa
from videonsa.cli.main import main

LOST = "videonsa: error: the logits of token 1 of the answer are not finite"


@pytest.fixture
def ask(tiny_folder, clip_path, capsys):
    def run(*options):
        arguments = ["ask", str(clip_path), "What moves?", "--model", str(tiny_folder)]
        status = main([*arguments, "--device", "cpu", "--max-new-tokens", "4", *options])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_stdout_holds_the_answer_and_stderr_what_was_used(ask, tiny_folder, clip_path):
    status, out, err = ask()
    assert status == 0
    expected = videonsa.load(tiny_folder, device="cpu").ask(
        clip_path, "What moves?", max_new_tokens=4
    )
    assert out == expected.text + "\n"
    assert "frames     8 of 112x84, 0.00 s to 3.50 s" in err
    assert f"= {expected.usage.prompt_tokens} of 2048" in err
    assert "attention  nsa, compressed mask past_complete: K = 24 keys a row" in err
    assert "first token after" in err


def test_json_is_one_object_with_the_same_answer(ask, clip_path):
    status, out, _ = ask("--json")
    answer = json.loads(out)
    assert status == 0
    assert (answer["video"], answer["question"]) == (str(clip_path), "What moves?")
    assert answer["text"] + "\n" == ask()[1]
    assert answer["usage"]["video_tokens"] == 48
    assert answer["usage"]["spec"]["block_size"] == 8
    assert answer["usage"]["budget"]["keys"] == 24


def test_sampling_options_reach_the_model(ask):
    _, out, _ = ask("--json", "--fps", "1", "--max-frames", "2", "--max-pixels", "3136")
    usage = json.loads(out)["usage"]
    assert len(usage["times"]) == 2
    assert usage["height"] * usage["width"] <= 3136
    _, out, _ = ask("--json", "--max-tokens", "20")
    assert json.loads(out)["usage"]["video_tokens"] <= 20


def test_a_stretch_and_a_number_of_frames_reach_the_model(ask):
    _, out, _ = ask("--json", "--start", "1", "--end", "3", "--num-frames", "3")
    usage = json.loads(out)["usage"]
    assert len(usage["times"]) == 3
    assert usage["times"][0] == 1.0
    assert usage["times"][-1] < 3.0
    _, _, err = ask("--end", "100", "--num-frames", "5000")
    assert "note       end=100 s is after the end" in err
    assert "note       5000 frames were asked for" in err


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--start", "-1"), "start=-1.0: want seconds"),
        (("--start", "100"), "start=100: want less than the duration"),
        (("--start", "3", "--end", "2"), "want an end after the start"),
        (("--num-frames", "0"), "num_frames=0: want an int of at least 1"),
        (("--num-frames", "4", "--fps", "2"), "fps and num_frames given together"),
        (("--frame-rate", "0"), "--frame-rate"),
        (("--frame-rate", "25"), "a file with a frame rate: want a folder of images"),
    ],
)
def test_a_stretch_or_a_rate_that_is_none_is_one_line(ask, options, what):
    status, _, err = ask(*options)
    assert status == 2
    assert what in err
    assert err.count("\n") == 1


def test_a_folder_of_images_has_the_rate_that_is_given(tiny_folder, tmp_path, capsys):
    for index in range(4):
        Image.new("RGB", (112, 84), (60 * index, 0, 0)).save(tmp_path / f"{index}.png")
    arguments = ["ask", str(tmp_path), "What?", "--model", str(tiny_folder), "--device", "cpu"]
    assert main([*arguments, "--frame-rate", "8", "--max-new-tokens", "1", "--json"]) == 0
    usage = json.loads(capsys.readouterr().out)["usage"]
    assert usage["times"] == [0.0, 0.125, 0.25, 0.375]


def test_a_budget_of_one_or_more_is_called_dense_equivalent(ask):
    _, _, err = ask("--max-frames", "2", "--max-pixels", "3136")
    assert ">= 1: dense-equivalent" in err


def test_dense_attention_says_so(ask):
    _, _, err = ask("--method", "dense")
    assert "attention  dense: every row" in err
    assert "note       dense attention was asked for" in err


def test_weights_without_gates_run_dense_unless_fresh_gates_are_wished(
    tiny_folder, clip_path, tmp_path, capsys
):
    dense = videonsa.load(tiny_folder, method="dense", device="cpu")
    dense.model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(tiny_folder / name)
    arguments = ["ask", str(clip_path), "What?", "--model", str(tmp_path), "--max-new-tokens", "1"]
    assert main(arguments) == 0
    assert "note       these weights have no gates: attention is dense" in capsys.readouterr().err
    assert main([*arguments, "--method", "nsa"]) == 2
    assert "have no gates" in capsys.readouterr().err
    assert main([*arguments, "--method", "nsa", "--fresh-gates"]) == 0
    assert "fresh" in capsys.readouterr().err


def test_libraries_write_nothing_of_their_own(tiny_folder, clip_path):
    command = [sys.executable, "-m", "videonsa", "ask", str(clip_path), "What?"]
    options = ["--model", str(tiny_folder), "--device", "cpu", "--max-new-tokens", "2"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    titles = [line.split()[0] for line in done.stderr.splitlines()]
    assert titles == ["frames", "tokens", "attention", "generation", "time", "computed", "note"]


def test_fit_is_told_with_the_notes(ask):
    status, _, err = ask("--fit")
    assert status == 0
    assert "note       fit: 8 frames of 112x84, as asked" in err
    status, _, err = ask("--fit", "--memory", "0.9MB")
    assert status == 2
    assert "no sampling fits" in err


def test_system_and_top_p_reach_the_model(ask, tiny_folder, clip_path):
    qa = videonsa.load(tiny_folder, device="cpu")
    options = {
        "system": "Answer in one short word, please.",
        "temperature": 2.0,
        "top_p": 0.5,
        "seed": 1,
    }
    expected = qa.ask(clip_path, "What moves?", max_new_tokens=4, **options)
    _, out, err = ask(
        *(
            "--system",
            "Answer in one short word, please.",
            "--temperature",
            "2",
            "--top-p",
            "0.5",
            "--seed",
            "1",
        )
    )
    assert out == expected.text + "\n"
    assert f"= {expected.usage.prompt_tokens} of 2048" in err
    without = qa.ask(clip_path, "What moves?", max_new_tokens=4)
    assert without.usage.prompt_tokens != expected.usage.prompt_tokens


def test_the_budget_is_explained_where_it_is_printed(ask):
    _, _, err = ask()
    (line,) = (line for line in err.splitlines() if "budget 2K/(L-1)" in line)
    for words in ("of each video token", "selected blocks and window", "dense attention", "prompt"):
        assert words in line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_weight_that_is_not_finite_is_one_line_and_status_2(ask, tiny_folder, tmp_path, value):
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    (name,) = (name for name in tensors if name.endswith("layers.1.mlp.down_proj.weight"))
    tensors[name][3, 5] = value
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    status, out, err = ask("--model", str(tmp_path))
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(LOST)


def test_the_demonstration_model_says_what_it_knows(clip_path, capsys):
    assert main(["ask", str(clip_path), "What moves?", "--max-new-tokens", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    (line,) = (line for line in err.splitlines() if "demonstration model" in line)
    assert "rendered clips of coloured shapes only" in line
    assert line.removeprefix("note       ") in json.loads(out)["usage"]["notes"]


def test_another_model_is_not_called_a_demonstration(ask):
    assert "demonstration" not in ask()[2]


def test_an_adapter_is_merged_and_named(ask, tiny_folder, tmp_path):
    model = videonsa.load(tiny_folder, device="cpu").model
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    adapted.save_pretrained(tmp_path)  # B is 0: it changes nothing
    assert ask("--model", str(tmp_path))[:2] == ask()[:2]
    for options in ([], ["--base", str(tiny_folder)]):
        status, _, err = ask("--model", str(tmp_path), *options)
        assert status == 0
        assert f"note       LoRA adapter {tmp_path} (rank 2) merged into {tiny_folder}" in err
    status, _, err = ask("--base", str(tiny_folder))
    assert status == 2
    assert "holds no adapter" in err.splitlines()[-1]
