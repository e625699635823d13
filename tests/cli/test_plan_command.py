"""`videonsa plan`."""

import json

from PIL import Image

from videonsa.cli.main import main


def test_plan_prints_frames_tokens_memory_and_budget(tiny_folder, clip_path, capsys):
    assert main(["plan", str(clip_path), "--model", str(tiny_folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    titles = [line.split()[0] for line in out.splitlines() if line[0] != " "]
    assert titles == ["video", "frames", "tokens", "attention", "model", "memory"]
    assert "48 video" in out
    assert "(estimated; the peak is in" in out


def test_plan_of_a_published_model_needs_no_weights(clip_path, capsys):
    arguments = ["plan", str(clip_path), "--model", "Qwen/Qwen2.5-VL-7B-Instruct", "--json"]
    assert main([*arguments, "--dtype", "bfloat16"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"] == 8_292_166_656
    tower = plan["memory_bytes_estimated"]["stages"]["vision tower"]
    assert tower["weights"] == 2 * 8_292_166_656
    assert plan["seconds_estimated"] is None
    assert plan["budget"] is None


def test_plan_says_when_it_does_not_fit(tiny_folder, clip_path, capsys):
    options = ["--model", str(tiny_folder), "--fps", "2", "--max-pixels", "50176"]
    assert main(["plan", str(clip_path), *options]) == 0
    assert ": fits" in capsys.readouterr().out


def test_a_plan_for_a_cpu_is_held_against_the_memory_of_the_machine(clip_path, capsys, monkeypatch):
    monkeypatch.setattr("videonsa.planning.devices._system_memory", lambda: 20 * 10**9)
    arguments = ["plan", str(clip_path), "--model"]
    assert main([*arguments, "Qwen/Qwen2.5-VL-7B-Instruct"]) == 0
    out = capsys.readouterr().out
    assert "of 20.0 GB on the CPU: does NOT fit: the weights alone do not; try --dtype" in out
    assert main([*arguments, "Qwen/Qwen2.5-VL-3B-Instruct"]) == 0
    assert "of 20.0 GB on the CPU: fits" in capsys.readouterr().out


def test_a_revision_is_of_an_id(tiny_folder, clip_path, capsys):
    arguments = ["plan", str(clip_path), "--model", str(tiny_folder), "--revision", "v1"]
    assert main(arguments) == 2
    assert "only ids of the Hugging Face hub have revisions" in capsys.readouterr().err


def test_plan_for_a_gpu_elsewhere_tells_memory_and_time(clip_path, capsys):
    arguments = ["plan", str(clip_path), "--model", "Qwen/Qwen2.5-VL-7B-Instruct"]
    assert main([*arguments, "--memory", "24GB"]) == 0
    out = capsys.readouterr().out
    assert "of 24.0 GB on a GPU elsewhere: fits" in out
    assert "bfloat16" in out
    assert "time       about" in out
    assert main([*arguments, "--memory", "17GB"]) == 0
    assert "does NOT fit" in capsys.readouterr().out
    assert main([*arguments, "--memory", "17GB", "--fit"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_memory_size_that_is_none_is_refused(clip_path, capsys):
    assert main(["plan", str(clip_path), "--memory", "lots"]) == 2
    assert "want a size such as 24GB" in capsys.readouterr().err


def test_the_length_of_the_answer_is_counted_as_ask_counts_it(tiny_folder, clip_path, capsys):
    arguments = ["plan", str(clip_path), "--model", str(tiny_folder), "--max-new-tokens"]
    assert main([*arguments, "100"]) == 0
    assert "100 for the answer" in capsys.readouterr().out
    assert main([*arguments, "2000"]) == 0
    assert "does NOT fit" in capsys.readouterr().out


def test_a_base_without_an_adapter_is_refused(tiny_folder, clip_path, capsys):
    arguments = ["plan", str(clip_path), "--model", str(tiny_folder), "--base", str(tiny_folder)]
    assert main(arguments) == 2
    assert "holds no adapter" in capsys.readouterr().err


def test_plan_says_what_is_not_taken_as_it_is(tiny_folder, tmp_path, capsys):
    for index in range(5):
        Image.new("RGB", (112, 84), (50 * index, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("x")
    arguments = ["plan", str(tmp_path), "--model", str(tiny_folder)]
    assert main([*arguments, "--frame-rate", "4", "--num-frames", "9"]) == 0
    out, err = capsys.readouterr()
    assert "1.25 s, 112x84, 4 fps" in out
    assert err.splitlines() == [
        "note       passed over in the folder, as no images that are read here: notes.txt",
        "note       9 frames were asked for, and there are 5: all are taken",
    ]
    assert main([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["notes"]) == 2
