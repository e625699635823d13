"""Small training runs for the tests of this folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import TOKENIZER, write_clip
from ranks import run_ranks
from small_manifest import record, write_manifest

from videonsa.cli.main import main
from videonsa.data.records import VideoRef
from videonsa.train.reading import read_recipe, recipe_to_yaml

ANSWERS = ("Yes.", "No.", "red", "a circle")


def make_data(folder: Path, *, num_samples: int = 8) -> Path:
    """A manifest of short videos in real files, each asked about once."""
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for i in range(num_samples):
        clip = write_clip(folder / f"clip{i}.mp4", num_frames=4 + i % 4)
        records.append(record(f"clip{i}", VideoRef(path=str(clip)), answer=ANSWERS[i % 4]))
    path = folder / "manifest.parquet"
    write_manifest(path, records, AutoTokenizer.from_pretrained(TOKENIZER))
    return path


def build_data(folder: Path, *, num_videos: int = 9) -> Path:
    """What `videonsa data build` makes of a small tree of real files, as LLaVA-Video has them."""
    part = folder / "tree/0_30_s_academic_v0_1"
    videos = part / "academic_source"
    videos.mkdir(parents=True)
    rows = []
    for i in range(num_videos):
        write_clip(videos / f"clip{i}.mp4", num_frames=4 + i % 4)
        said = [("human", f"<image>\nWhat is shown in {i}?"), ("gpt", ANSWERS[i % 4])]
        rows.append(
            {
                "id": f"clip{i}",
                "conversations": [{"from": who, "value": text} for who, text in said],
                "data_source": part.name,
                "video": f"academic_source/clip{i}.mp4",
            }
        )
    (videos / "clip0.mp4").write_bytes(b"")  # not a video: it is dropped
    (part / "0_30_s_academic_oe_v0_1_qa_processed.json").write_text(json.dumps(rows))
    options = ["--model", "embedded", "--fps", "2", "--min-frames", "0", "--workers", "1"]
    out = folder / "data"
    assert main(["data", "build", str(folder / "tree"), "--out", str(out), *options]) == 0
    return out


def recipe_for(base: Path, manifest: Path, *settings: str, name: str = "tiny"):
    """The recipe `tiny` on a model of two layers."""
    return read_recipe(
        name,
        settings=(
            f"model.base={base}",
            f"data.manifest={manifest}",
            "data.context=128",
            "attention.block_size=8",
            "optimizer.steps=6",
            "optimizer.batch_size=2",
            "run.save_every=3",
            *settings,
        ),
    )


def command_of(recipe, out: Path, *settings: str) -> list[str]:
    """The words after `videonsa` that train so."""
    path = out.with_suffix(".yaml")
    path.write_text(recipe_to_yaml(recipe))
    chosen = [word for setting in settings for word in ("--set", setting)]
    return ["train", str(path), "--out", str(out), *chosen]


def start_torchrun(recipe, out: Path, *settings: str, processes: int = 2, gpus: str = ""):
    """`videonsa train` under torchrun, on CPUs or a GPU each."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *torchrun, "-m", "videonsa", *command_of(recipe, out, *settings)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpus, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run_torchrun(*arguments, **options) -> None:
    """The same to its end, which has to be a good one."""
    process = start_torchrun(*arguments, **options)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output.decode()


def run_processes(recipe, out: Path, *settings: str, program=main) -> None:
    """Two processes on CPUs, which have to end well."""
    command = command_of(recipe, out, *settings)
    ended = run_ranks(program, command, folder=out.with_suffix(".output"))
    assert not any(ended.statuses), ended.output


def run_on_from_first_checkpoint(
    recipe, out: Path, *settings: str, run=run_processes, **options
) -> None:
    """Run again as if killed after the first of two checkpoints."""
    first, last = sorted(out.glob("checkpoint-*"))
    for path in (last, out / "model"):
        path.rename(out.with_name(path.name))
    written = (first / "trainer_state.json").stat().st_mtime_ns
    run(recipe, out, *settings, **options)
    assert (first / "trainer_state.json").stat().st_mtime_ns == written  # else it began anew


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(out: Path) -> list[tuple[int, float, float]]:
    """Step, loss and norm of the gradients, step by step."""
    return [(x["step"], x["loss"], x["grad_norm"]) for x in lines(out / "log.jsonl") if "loss" in x]
