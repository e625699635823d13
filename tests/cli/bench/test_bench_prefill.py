"""`videonsa bench prefill` on a CPU: every stage measured, bad options refused in one line."""

import json

import pytest

from videonsa.bench import prefill
from videonsa.bench.random_model import random_model
from videonsa.cli.main import main
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.methods import NSA
from videonsa.ops.spec import NSASpec

STAGES = [
    "vision tower",
    "prefill, nsa, random",
    "next token after prefill, nsa, random",
    "prefill, nsa, coherent",
    "next token after prefill, nsa, coherent",
    "prefill, dense",
    "next token after prefill, dense",
    "transformers: vision tower",
    "transformers: prefill",
]
SMALL = ["bench", "prefill", "--model", "tiny", "--device", "cpu", "--frame", "56x56"]
TINY = [*SMALL, "--video", "none"]
READING = [
    "decode + resize, 1 worker",
    "decode + resize, 2 workers",
    "patchify",
    "vision tower",
    "decode to features, overlapped, 2 workers",
    "prefill, nsa",
    "next token after prefill, nsa",
    "video to first token, nsa",
]


def test_every_stage_of_every_length_is_measured(tmp_path, capsys):
    path = tmp_path / "prefill.json"
    arguments = [*TINY, "--tokens", "16,40", "--repeats", "2", "--peers", "--out", str(path)]
    assert main(arguments) == 0
    result = json.loads(path.read_text())
    assert result["video"] is None
    assert [length["tokens"] for length in result["lengths"]] == [16, 40]
    assert {tuple(length["frame"]) for length in result["lengths"]} == {(56, 56)}
    for length in result["lengths"]:
        assert [stage["name"] for stage in length["stages"]] == STAGES
        for stage in length["stages"]:
            assert stage["error"] is None, stage
            assert len(stage["times_ms"]) == 2
            assert min(stage["times_ms"]) <= stage["ms"] <= max(stage["times_ms"])
    text = capsys.readouterr().out
    assert "tiny, 40 video tokens" in text
    assert all(name in text for name in STAGES)


def test_fp8_without_a_gpu_that_has_it_is_one_line(capsys):
    assert main([*TINY, "--weights", "fp8"]) == 2
    assert "weights='fp8' on cpu: products of float8 need" in capsys.readouterr().err


def test_sparse_rows_go_through_the_layers_as_many_at_a_time_as_is_wished(tmp_path, monkeypatch):
    chunks = []
    run = VideoNSAForConditionalGeneration._run_chunks

    def noted(self, embeds, rows, cache, call):
        chunks.append((call.method.name, call.chunk))
        return run(self, embeds, rows, cache, call)

    monkeypatch.setattr(VideoNSAForConditionalGeneration, "_run_chunks", noted)
    path = tmp_path / "prefill.json"
    options = ["--tokens", "40", "--repeats", "1", "--rows-per-chunk", "24", "--out", str(path)]
    assert main([*TINY, *options]) == 0
    assert json.loads(path.read_text())["rows_per_chunk"] == 24
    assert set(chunks) == {("nsa", 24)}


def test_of_further_frame_sizes_the_tower_is_measured_at_the_longest_length(tmp_path):
    path = tmp_path / "prefill.json"
    sizes = ["--frame", "56x56,56x84", "--tokens", "16,40", "--repeats", "1"]
    assert main([*TINY, *sizes, "--no-dense", "--out", str(path)]) == 0
    last = json.loads(path.read_text())["lengths"][-1]
    assert (last["frame"], last["tokens"]) == ([56, 84], 42)
    assert [stage["name"] for stage in last["stages"]] == ["vision tower"]


def test_blocks_that_neighbouring_rows_select_are_counted_layer_by_layer(tmp_path, monkeypatch):
    def with_small_blocks(*arguments, **options):
        model = random_model(*arguments, **options)
        model.method = NSA(NSASpec(block_size=16, num_selected_blocks=32, window_size=16))
        return model

    monkeypatch.setattr(prefill, "random_model", with_small_blocks)
    path = tmp_path / "prefill.json"
    assert main([*TINY, "--tokens", "768", "--repeats", "1", "--no-dense", "--out", str(path)]) == 0
    stages = json.loads(path.read_text())["lengths"][0]["stages"]
    random, coherent = (
        next(x for x in stages if x["name"] == f"prefill, nsa, {regime}")["mean_unions"]
        for regime in ("random", "coherent")
    )
    assert len(random) == len(coherent) == 2
    assert all(20 < few < many <= 48 for few, many in zip(coherent, random, strict=True))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "8B", "--model 8B: want one of tiny, 3B, 7B"),
        ("--model", "7B", "--model 7B with --device cpu: want tiny"),
        ("--tokens", "12q", "--tokens '12q': want positive numbers"),
        ("--tokens", "0", "--tokens '0': want positive numbers"),
        ("--frame", "30x56", "--frame '30x56': want HEIGHTxWIDTH in multiples of 28"),
        ("--repeats", "0", "--repeats 0: want at least 1"),
        ("--video", "no.mp4", "no.mp4: no such file"),
    ],
)
def test_bad_options_are_one_line(option, value, message, capsys):
    assert main([*TINY, option, value]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--workers", "0", "workers=0: want at least 1"),
        ("--fps", "-1", "fps=-1.0: want a number above 0"),
    ],
)
def test_bad_options_of_the_reading_are_one_line(clip_path, option, value, message, capsys):
    assert main([*SMALL, "--video", str(clip_path), option, value]) == 2
    assert message in capsys.readouterr().err


def test_a_video_is_measured_from_its_file_to_the_first_token(clip_path, tmp_path, capsys):
    path = tmp_path / "prefill.json"
    video = ["--video", str(clip_path), "--fps", "2", "--workers", "2"]
    arguments = [*SMALL, *video, "--tokens", "16", "--repeats", "2", "--out", str(path)]
    assert main(arguments) == 0
    result = json.loads(path.read_text())["video"]
    assert [stage["name"] for stage in result["stages"]] == READING
    for stage in result["stages"]:
        assert stage["error"] is None, stage
        assert len(stage["times_ms"]) == 2
    assert (result["frames"], result["frame"], result["tokens"]) == (8, [28, 56], 8)
    assert (result["file"], result["source"]) == ("clip.mp4", "112x84 mpeg4")
    speedup = result["workers_speedup"]
    assert 0 < speedup["min"] <= speedup["median"] <= speedup["max"]
    text = capsys.readouterr().out
    assert "clip.mp4: 8 frames of 4 s, 8 video tokens; 2 workers read" in text
    assert all(name in text for name in READING)


def test_json_is_one_object(tmp_path, capsys):
    path = tmp_path / "prefill.json"
    assert main([*TINY, "--tokens", "16", "--repeats", "1", "--out", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())
