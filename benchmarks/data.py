"""Rows a second of `videonsa data build`, and files a second of its probing, on one core.

    python benchmarks/data.py --output benchmarks/results/cpu/data.json

Rows are questions and answers of the length of LLaVA-Video-178K's, seven a video, all videos known
from a journal: what is timed is reading and judging. Probing is timed on copies of one 720p h264
file in the page cache. CPU seconds leave other load on the machine alone; of several runs the
median counts.
"""

import argparse
import json
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import av
import numpy as np

from videonsa.data.build import BuildOptions, build, open_sources
from videonsa.data.filter import FilterOptions
from videonsa.data.probe import probe_file, target_of
from videonsa.data.probe_journal import JOURNAL, ProbeJournal
from videonsa.disk import write_atomic
from videonsa.machine import cpu_model
from videonsa.video.sampling import VideoInfo

ROWS_A_VIDEO = 7
WORDS = (
    *("the", "a", "man", "woman", "dog", "red", "car", "walks", "to", "from", "near", "behind"),
    *("holding", "opens", "closes", "door", "table", "street", "camera", "then", "while", "what"),
)


def text(draw: random.Random, words: int) -> str:
    """So many words that mean nothing."""
    return " ".join(draw.choices(WORDS, k=words)) + "."


def write_rows(folder: Path, num_rows: int) -> Path:
    """A LLaVA-style file about files that hold one byte."""
    draw = random.Random(0)
    rows = []
    (folder / "videos").mkdir()
    for index in range(num_rows):
        name = f"videos/{index // ROWS_A_VIDEO}.mp4"
        if index % ROWS_A_VIDEO == 0:
            (folder / name).write_bytes(b"x")
        said = [f"<image>\n{text(draw, 18)}", text(draw, draw.choice((2, 5, 30, 60)))]
        turns = [
            {"from": ("human", "gpt")[turn], "value": value} for turn, value in enumerate(said)
        ]
        rows.append({"id": index, "conversations": turns, "data_source": "made", "video": name})
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def fill_journal(folder: Path, out: Path) -> None:
    """State videos of 60 to 160 seconds for those files."""
    draw = random.Random(1)
    with ProbeJournal(out / JOURNAL) as journal:
        for path in sorted((folder / "videos").iterdir()):
            seconds = draw.uniform(60, 160)
            info = VideoInfo(
                path=str(path),
                duration=seconds,
                num_frames=round(30 * seconds),
                fps=30.0,
                width=1280,
                height=720,
            )
            journal.add(target_of(str(path)).state, info)


def times(work: Callable[[], Any], repeats: int) -> Iterator[tuple[float, float]]:
    """Wall and CPU seconds of each run."""
    for _ in range(repeats):
        begin = time.perf_counter(), time.process_time()
        work()
        yield time.perf_counter() - begin[0], time.process_time() - begin[1]


def rates(work: Callable[[], Any], count: int, repeats: int) -> dict[str, float]:
    """What is done in a second, by the clock and by the CPU."""
    wall, cpu = zip(*times(work, repeats), strict=True)
    return {
        "count": count,
        "a_second": count / statistics.median(wall),
        "a_cpu_second": count / statistics.median(cpu),
        "cpu_seconds_min": min(cpu),
        "cpu_seconds_max": max(cpu),
    }


def measure_rows(folder: Path, tokenizer: Any, *, num_rows: int, repeats: int) -> dict[str, Any]:
    """Reading alone, and a whole build without probing."""
    sources, _ = open_sources([str(write_rows(folder, num_rows))])
    out = folder / "out"
    out.mkdir()
    fill_journal(folder, out)
    options = BuildOptions(filter=FilterOptions(), model="made", tokenizer_hash="")
    reading = rates(lambda: sum(1 for _ in sources[0].entries()), num_rows, repeats)
    whole = rates(
        lambda: build(sources, out, options=options, tokenizer=tokenizer), num_rows, repeats
    )
    report = json.loads((out / "report.json").read_text())
    return {"reading": reading, "build": whole, "kept": report["kept"]}


def measure_probing(folder: Path, *, num_files: int, repeats: int) -> dict[str, float]:
    """Headers of copies of one file."""
    first = folder / "0.mp4"
    with av.open(str(first), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        columns = np.arange(1280)[None, :, None] + np.arange(720)[:, None, None]
        for index in range(300):
            picture = np.broadcast_to((columns + 4 * index) % 256, (720, 1280, 3))
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    paths = [first, *(folder / f"{index}.mp4" for index in range(1, num_files))]
    for path in paths[1:]:
        shutil.copy(first, path)

    def work() -> None:
        for path in paths:
            assert isinstance(probe_file(str(path)), VideoInfo)

    return rates(work, num_files, repeats)


def main() -> None:
    """Measure both and write one JSON object."""
    from transformers import PreTrainedTokenizerFast

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json (default: the embedded one)")
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    embedded = Path(__file__).parents[1] / "src/videonsa/assets/embedded/tokenizer.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(args.tokenizer or embedded))
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_rows(Path(folder), tokenizer, num_rows=args.rows, repeats=args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        probing = measure_probing(Path(folder), num_files=args.files, repeats=args.repeats)
    result = {
        "what": "rows and files a second on one core; all rows about known videos",
        "vocabulary": len(tokenizer),
        **rows,
        "probing": probing,
        "machine": {
            "cpu": cpu_model(),
            "python": platform.python_version(),
            "pyav": av.__version__,
            "date": datetime.now(UTC).date().isoformat(),
        },
    }
    written = json.dumps(result, indent=2) + "\n"
    if args.output:
        write_atomic(args.output, written)
    print(written, end="")


if __name__ == "__main__":
    main()
