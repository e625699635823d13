"""Write a tree like LLaVA-Video-178K of small real videos, some broken, and what is to come of it.

    python scripts/make_video_tree.py TREE --files 220

Several codecs, containers, lengths, rates and sizes; files that are cut off, empty, zeroed, text,
archives or absent; rows in three formats, some of them bad. TREE/expected.json says how many rows
of each data set `videonsa data build TREE --max-tokens 8000` keeps, and how many it drops and why;
it follows from how the tree is made.
"""

import argparse
import json
import random
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import cycle
from pathlib import Path
from typing import Any

import av
import numpy as np

FORMATS = (
    ("mp4", "libx264", "yuv420p", {"preset": "ultrafast"}),
    ("mkv", "libx264", "yuv420p", {"preset": "ultrafast"}),
    ("webm", "libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}),
    ("avi", "mpeg4", "yuv420p", {}),
    ("mov", "mjpeg", "yuvj420p", {}),
    ("mp4", "libx265", "yuv420p", {"preset": "ultrafast", "x265-params": "log-level=none"}),
    ("mkv", "ffv1", "yuv420p", {}),
    ("ts", "mpeg2video", "yuv420p", {}),
)
SIZES = ((64, 48), (48, 64), (96, 56), (64, 64))
LENGTHS = (
    # seconds, frames a second, and what the paper's rule says of it: 350 to 550 frames at 4 fps
    (95, 5, "kept"),  # 380
    (130, 6, "kept"),  # 520
    (20, 10, "few_frames"),  # 80
    (180, 2, "kept"),  # all of its 360 frames
    (150, 5, "many_frames"),  # 600
    (87, 8, "few_frames"),  # 348
    (88, 5, "kept"),  # 352
    (137, 5, "kept"),  # 548
    (138, 5, "many_frames"),  # 552
)
BREAKAGES = ("cut", "empty", "zeros", "text", "zip", "absent")
PARTS = ("0_30_s_academic_v0_1", "1_2_m_youtube_v0_1", "2_3_m_academic_v0_1")
LONG_TEXT = "The man walks to the door and opens it. " * 1600


@dataclass(slots=True)
class Tree:
    """What is written, and what is to come of it."""

    folder: Path
    expected: dict[str, Counter[str]] = field(default_factory=dict)
    num_files: int = 0

    def expect(self, source: str, outcome: str) -> None:
        """One more row of a data set that is kept, or dropped for a reason."""
        self.expected.setdefault(source, Counter())[outcome] += 1


def pictures(width: int, height: int) -> list[np.ndarray]:
    """A second of a square that crosses a coloured ground, [H, W, 3] each."""
    made = []
    for step in range(16):
        picture = np.empty((height, width, 3), np.uint8)
        picture[...] = (30, 60 + 8 * step, 160)
        left = step * (width - 16) // 15
        picture[height // 3 : height // 3 + 16, left : left + 16] = (240, 200, 40)
        made.append(picture)
    return made


def write_video(path: Path, *, seconds: int, rate: int, size: tuple[int, int], form: Any) -> None:
    """Encode so many seconds."""
    _, codec, pix_fmt, options = form
    if codec == "libx265":  # it writes beyond its memory where a side is 64 or less
        size = (2 * size[0], 2 * size[1])
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.options = options
        for index, picture in zip(range(seconds * rate), cycle(pictures(*size)), strict=False):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def break_file(path: Path, how: str) -> None:
    """Make a file what cannot be read."""
    if how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "zeros":
        path.write_bytes(bytes(4096))
    elif how == "text":
        path.write_text("404 not found\n" * 20)
    elif how == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("video.txt", "not a video")
    else:
        path.unlink()


def write_files(tree: Tree, num_files: int) -> Iterator[tuple[str, str, str]]:
    """Videos over the parts of the tree: the part, the path in it, and what is to come of it."""
    known: dict[tuple[Any, ...], Path] = {}
    for index in range(num_files):
        part = PARTS[index % len(PARTS)]
        form = FORMATS[index % len(FORMATS)]
        seconds, rate, outcome = LENGTHS[index // 2 % len(LENGTHS)]
        how = None
        if index % 7 == 4:
            # Half an mp4 has no index. Half an mkv still states its length, and is kept.
            form, how = FORMATS[0], BREAKAGES[index // 7 % len(BREAKAGES)]
            outcome = "missing" if how == "absent" else "broken"
        path = f"academic_source/set{index % 4}/{index:04}.{form[0]}"
        place = tree.folder / part / path
        place.parent.mkdir(parents=True, exist_ok=True)
        size = SIZES[index % len(SIZES)]
        key = (form[:2], seconds, rate, size)
        if how is None and key in known:
            shutil.copy(known[key], place)
        else:
            write_video(place, seconds=seconds, rate=rate, size=size, form=form)
        if how is None:
            known[key] = place
        else:
            break_file(place, how)
        tree.num_files += how != "absent"
        yield part, path, outcome


def write_llava(tree: Tree, files: list[tuple[str, str, str]]) -> None:
    """Rows of three kinds in each part, with their placeholder as published and as reprocessed."""
    for part in PARTS:
        rows: dict[str, list[dict[str, Any]]] = {"cap": [], "oe_v0_1_qa": [], "mc_v0_1_qa": []}
        own = [file for file in files if file[0] == part]
        for number, (_, path, outcome) in enumerate(own):
            for kind in list(rows)[: 1 + number % 3]:
                mark = ("<image>\n", "<video>\n")[number % 2]
                said = [f"{mark}{kind}: what crosses the picture of video {number}?", "A square."]
                if kind == "oe_v0_1_qa":
                    said += ["Where does it go?", "To the right."]
                rows[kind].append(llava_row(part, path, said))
                tree.expect(part, outcome)
        good = next(path for _, path, outcome in own if outcome == "kept")
        rows["cap"] += bad_rows(tree, part, good)
        for kind, content in rows.items():
            name = f"{part}_{kind}_processed.json"
            (tree.folder / part / name).write_text(json.dumps(content, indent=1), "utf-8")
        (tree.folder / part / f"{part}_videos_1.tar.gz").write_bytes(b"not unpacked")


def llava_row(part: str, path: str, said: list[str]) -> dict[str, Any]:
    """A row as LLaVA-Video-178K has it; human and gpt in turn."""
    turns = [
        {"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(said)
    ]
    return {"id": path, "conversations": turns, "data_source": part, "video": path}


def bad_rows(tree: Tree, part: str, good: str) -> list[dict[str, Any]]:
    """Rows that are dropped though their video is good, and one that is cut."""
    cases: list[tuple[str, list[str], dict[str, Any]]] = [
        ("kept", ["<video>\nWhat is this?", "A square."], {}),
        ("duplicate", ["<video>\nWhat is this?", "A square."], {}),
        ("bad_turns", ["<video>\nWho?", "A square.", "And then?"], {}),
        ("empty_text", ["<video>\nWhere?", "  "], {}),
        ("placeholders", ["<video> <video>\nBoth?", "No."], {}),
        ("kept", [f"What is a square in {part}?", "A figure."], {"video": None}),
        ("remote", ["<video>\nWhen?", "Now."], {"video": "https://example.org/a.mp4"}),
        ("too_long", ["<video>\nTell all.", LONG_TEXT], {}),
        ("kept", ["<video>\nFirst?", "A square.", "And all the rest?", LONG_TEXT], {}),
        ("bad_row", ["<video>\nWhy?", "So."], {"conversations": "no turns"}),
    ]
    rows = []
    for outcome, said, changes in cases:
        rows.append(llava_row(part, good, said) | changes)
        tree.expect(part, outcome)
    return rows


def write_others(tree: Tree, files: list[tuple[str, str, str]]) -> None:
    """ms-swift and Hugging Face rows about the same files; one line is not JSON."""
    lines: dict[str, list[str]] = {"swift": [], "messages": []}
    draw = random.Random(0)
    for part, path, outcome in draw.sample(files, len(files) // 4):
        full = str((tree.folder / part / path).resolve())
        answer = {"role": "assistant", "content": "A square."}
        asked = {"role": "user", "content": "<video>What crosses it?"}
        lines["swift"].append(json.dumps({"messages": [asked, answer], "videos": [full]}))
        content = [{"type": "text", "text": "Look: "}, {"type": "video", "video": full}]
        lines["messages"].append(
            json.dumps({"messages": [{"role": "user", "content": content}, answer]})
        )
        for source in lines:
            tree.expect(source, outcome)
    lines["swift"].append('{"messages": [')
    tree.expect("swift", "bad_row")
    for source, rows in lines.items():
        (tree.folder / source).mkdir()
        (tree.folder / source / "train.jsonl").write_text("\n".join(rows) + "\n", "utf-8")


def make_tree(folder: Path, *, num_files: int) -> Tree:
    """Write all; `expected` of the result is exact."""
    tree = Tree(folder)
    files = list(write_files(tree, num_files))
    write_llava(tree, files)
    write_others(tree, files)
    return tree


def main() -> None:
    """Write the tree and what is expected of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=220, help="named files (default: 220)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    tree = make_tree(args.folder, num_files=args.files)
    expected = {source: dict(counts) for source, counts in sorted(tree.expected.items())}
    (args.folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    rows = sum(sum(counts.values()) for counts in tree.expected.values())
    print(f"{tree.num_files} files of {args.files}, {rows} rows -> {args.folder}")


if __name__ == "__main__":
    main()
