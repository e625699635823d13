"""`videonsa plan`."""

import json

from PIL import Image

from videonsa.cli.main import main


def test_plan_prints_frames_tokens_memory_and_budget(tiny_folder, clip_path, capsys):
    assert main(["plan", str(clip_path), "--model", str(tiny_folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    titles = [line.split()[0] for line in out.splitlines() if line[0] != " "]
    assert titles == ["video", "frames", "tokens", "attention", "computed", "model", "memory"]
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


def test_a_plan_for_a_named_gpu_says_what_it_stands_on(clip_path, capsys):
    arguments = ["plan", str(clip_path), "--model", "Qwen/Qwen2.5-VL-7B-Instruct", "--gpu"]
    assert main([*arguments, "rtx 4090"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "of 23.0 GB on NVIDIA GeForce RTX 4090: fits" in out
    assert (
        "gpu        24.0 GB by the data sheet, 1.0 GB of it left for driver and context; the "
        "kernels run there (compute capability 8.9)\n"
        "time       not estimated: rates were measured on NVIDIA H200 only\n"
    ) in out
    assert "bfloat16" in out
    assert main([*arguments, "h200"]) == 0
    assert "time       about" in capsys.readouterr().out
    assert main([*arguments, "4080"]) == 0
    assert "on NVIDIA GeForce RTX 4080: does NOT fit: the weights alone" in capsys.readouterr().out
    assert main([*arguments, "t4", "--weights", "int8"]) == 0
    assert "no kernels: the GPU has compute capability 7.5" in capsys.readouterr().out


def test_frames_are_fitted_to_a_named_gpu_and_json_has_its_data_sheet(clip_path, capsys):
    arguments = ["plan", str(clip_path), "--model", "Qwen/Qwen2.5-VL-7B-Instruct", "--json"]
    assert main([*arguments, "--gpu", "4090", "--fit"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fit"].endswith("as asked")
    assert plan["machine"]["memory"] == 23 * 10**9
    assert plan["machine"]["gpu"]["capability"] == [8, 9]
    assert plan["seconds_estimated"] is None
    assert main([*arguments, "--gpu", "4080", "--fit"]) == 2
    assert "the weights take 16.6 GB of 15.0 GB" in capsys.readouterr().err


def test_an_unknown_gpu_is_refused_with_the_names(clip_path, capsys):
    assert main(["plan", str(clip_path), "--gpu", "voodoo"]) == 2
    err = capsys.readouterr().err
    assert "GPU 'voodoo' is not known: want one of b200, h200" in err
    assert err.count("\n") == 1
    assert main(["plan", str(clip_path), "--gpu", "h100", "--memory", "24GB"]) == 2
    assert "both gpu and memory: pass one" in capsys.readouterr().err


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
