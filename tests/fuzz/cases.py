"""The cases: a command line each, in a folder of its own whose files may be damaged."""

import json
import os
import shutil
from argparse import Action, _SubParsersAction
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzz.mutations import (
    NUMBERS,
    PATHS,
    change_bytes,
    change_json,
    change_text,
    inflate,
    nested,
    to_json,
    word,
)
from tests.fuzz.samples import BUILD, EVALUATION, HEIGHT, TRAIN, WIDTH, copy_samples
from videonsa.cli.common import LineParser
from videonsa.cli.main import build_parser

KINDS = {"command": 40, "model": 24, "media": 26, "folder": 10}
"""How many of a hundred cases."""
ODD = ("clip.mp4", "folder", "empty", "text.json", "loop", "self", "pipe", "locked")
SANE: dict[tuple[str, ...], tuple[str, ...]] = {
    ("demo",): ("--model", "absent", "--out", "demo"),
    ("ask",): ("clip.mp4", "What?", "--model", "tiny", "--max-new-tokens", "1"),
    ("plan",): ("clip.mp4", "--model", "tiny"),
    ("convert",): ("tiny", "target"),
    ("data", "build"): (*BUILD, "--out", "built"),
    ("data", "check"): ("data",),
    ("data", "show"): ("data", "0"),
    ("doctor",): (),
    ("bench", "attention"): ("--list",),
    ("bench", "prefill"): (
        *("--model", "tiny", "--device", "cpu", "--tokens", "16", "--video", "none"),
        *("--repeats", "1", "--frame", "28x28", "--out", "result.json"),
    ),
    ("bench", "train"): (
        *("--model", "tiny", "--device", "cpu", "--tokens", "16", "--parts", "layers"),
        *("--repeats", "1", "--frame", "28x28", "--out", "result.json"),
    ),
    ("eval", "synthetic"): EVALUATION,
    ("train",): (*TRAIN[1:], "--show"),
}
"""What is quick and goes well, of every command; new commands get nothing."""
ANALYSIS = (
    *("--model", "tiny", "--suite", "1", "--kinds", "needle", "--videos", "1"),
    *("--length", "64", "--frame-size", "28", "--out", "found"),
)
"""Of every `analyze`."""
SERVES = ("serve",)
"""Runs until it is stopped: hostile requests to it are in tests/server."""
DEAR = {("bench", "prefill"), ("bench", "train"), ("data", "build"), ("eval", "synthetic")}
"""Commands that take long where they go well: met less often."""
VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "HF_HOME")
STREAMS = ("stdout closed", "stdout full", "stderr closed", "stdin closed")


@dataclass
class Case:
    """A command line, what was done to the files beside it, streams and variables."""

    kind: str
    argv: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    streams: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def make_case(seed: int, number: int, samples: Path, folder: Path) -> Case:
    """Case `number`: writes its files into `folder`, which is empty."""
    rng = Random(f"{seed}:{number}")
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    case = Case(kind)
    makers = {"command": _command, "model": _model, "media": _media, "folder": _folder}
    makers[kind](rng, case, samples, folder)
    return case


def leaves(parser: LineParser, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple, LineParser]]:
    """Every command that runs something, with its parser."""
    below = [action for action in parser._actions if isinstance(action, _SubParsersAction)]
    if not below:
        yield words, parser
    for action in below:
        for name, child in action.choices.items():
            yield from leaves(child, (*words, name))


def _command(rng: Random, case: Case, samples: Path, folder: Path) -> None:
    """A command line: options of the parser with hostile values, words changed, taken, doubled."""
    commands = dict(leaves(build_parser()))
    del commands[SERVES]
    weights = [1 if words in DEAR else 4 for words in commands]
    words = rng.choices(list(commands), weights)[0]
    more = ("data",) if words[0] in ("data", "train") else ()
    copy_samples(samples, folder, (*ODD, "tiny", *more))
    line = list(ANALYSIS if words[0] == "analyze" else SANE.get(words, ()))
    options = [action for action in commands[words]._actions if action.option_strings]
    for _ in range(rng.choices((0, 1, 2, 3), (1, 8, 4, 2))[0]):
        kind = rng.randrange(10)
        if kind < 6:
            line += _option(rng, rng.choice(options), line)
        elif kind < 8 and line:
            at = rng.randrange(len(line))
            line[at] = word(rng) if rng.random() < 0.5 else change_text(rng, line[at])
        elif kind == 8 and line:
            at = rng.randrange(len(line))
            line[at : at + 1] = rng.choice(([], [line[at]] * 2))
        else:
            line.insert(rng.randrange(len(line) + 1), rng.choice(("--nope", "-x", word(rng))))
    if words == ("train",) and rng.random() < 0.8:
        line += ["--set", _setting(rng)]
    if rng.random() < 0.04:
        case.streams = rng.choice(STREAMS)
    if rng.random() < 0.04:
        case.environment[rng.choice(VARIABLES)] = rng.choice(("x", "-1", "", "0.5", "1e9", "nan"))
    head = list(words)
    if rng.random() < 0.04:
        head.insert(rng.randrange(len(head) + 1), word(rng))
    case.argv = [text for text in (*head, *line) if "\x00" not in text]


def _option(rng: Random, action: Action, line: list[str]) -> list[str]:
    """An option with a value that is hostile, or of those it takes."""
    name = rng.choice(action.option_strings)
    if action.nargs == 0:
        return [name] if rng.random() < 0.9 else [f"{name}={word(rng)}"]
    if action.choices is not None and rng.random() < 0.6:
        return [name, str(rng.choice(list(action.choices)))]
    if isinstance(action.default, int | float) and rng.random() < 0.8:
        return [name, rng.choice(NUMBERS)]
    if isinstance(action.default, Path) or action.metavar in ("FILE", "FOLDER", "DIR"):
        return [name, rng.choice(PATHS)]
    # What is quick is changed rather than the default, such as 128k tokens, which may take long.
    text = line[line.index(name) + 1] if name in line[:-1] else action.default
    if isinstance(text, str) and text and rng.random() < 0.6:
        return [name, change_text(rng, text)]
    return [f"{name}={word(rng)}"] if rng.random() < 0.3 else [name, word(rng)]


def _setting(rng: Random) -> str:
    from dataclasses import fields

    from videonsa.train.settings import SECTIONS

    section = rng.choice(list(SECTIONS))
    key = rng.choice([entry.name for entry in fields(SECTIONS[section])])
    return f"{section}.{key}={word(rng) if rng.random() < 0.4 else rng.choice(NUMBERS)}"


def _model(rng: Random, case: Case, samples: Path, folder: Path) -> None:
    """A damaged model folder, planned with, asked or converted."""
    copy_samples(samples, folder, ("tiny", "clip.mp4"))
    model = folder / "tiny"
    for _ in range(rng.choices((1, 2), (3, 1))[0]):
        _damage(rng, case, model, _model_file(rng, model))
    case.argv = rng.choices(
        (
            ["plan", "clip.mp4", "--model", "tiny"],
            ["ask", "clip.mp4", "What?", "--model", "tiny", "--max-new-tokens", "1"],
            ["convert", "tiny", "target"],
        ),
        (4, 3, 2),
    )[0]
    if case.argv[0] == "convert":
        case.argv += rng.choice(([], ["--fresh-gates", "half"], ["--dtype", "bfloat16"]))


def _model_file(rng: Random, model: Path) -> Path:
    """The file to damage; some are made first, whole."""
    name = rng.choices(
        (
            *("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"),
            *("generation_config.json", "preprocessor_config.json", "adapter_config.json"),
            *("video_preprocessor_config.json", "model.safetensors.index.json"),
            *("chat_template.json", "special_tokens_map.json"),
        ),
        (20, 4, 5, 6, 3, 2, 2, 3, 2, 1, 1),
    )[0]
    path = model / name
    if not os.path.lexists(path):
        path.write_bytes(to_json(_MADE.get(name, {})))
    if name.endswith("index.json") and (model / "model.safetensors").exists():
        (model / "model.safetensors").rename(model / "part.safetensors")
    return path


_MADE = {
    "generation_config.json": {"eos_token_id": 0, "temperature": 0.5, "repetition_penalty": 1.05},
    "preprocessor_config.json": {"patch_size": 14, "merge_size": 2, "max_pixels": 12845056},
    "video_preprocessor_config.json": {
        **{"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "fps": 2},
        **{"size": {"shortest_edge": 3136, "longest_edge": 50176}, "max_frames": 768},
    },
    "adapter_config.json": {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "tiny"},
    "model.safetensors.index.json": {
        "metadata": {"total_size": 1},
        "weight_map": {"lm_head.weight": "part.safetensors", "x": "../clip.mp4"},
    },
}


def _damage(rng: Random, case: Case, root: Path, path: Path) -> None:
    """Damage one file of a folder, or put something else in its place."""
    name = path.relative_to(root)
    if not path.is_file():
        case.done.append(f"{name}: is no file any more")
        return
    content = path.read_bytes()
    if rng.random() < 0.1:
        _replace(rng, case, root, path)
    elif path.suffix == ".safetensors" and rng.random() < 0.7:
        new, what = _change_header(rng, content)
        path.write_bytes(new)
        case.done.append(f"{name}: {what}")
    elif path.suffix == ".json" and rng.random() < 0.85:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):  # damaged before
            value = {}
        what = "; ".join(change_json(rng, value) for _ in range(rng.choice((1, 1, 2))))
        path.write_bytes(to_json(value))
        case.done.append(f"{name}: {what}")
    elif path.suffix in (".yaml", ".jsonl", ".jinja", ".md"):
        new_text = change_text(rng, content.decode("utf-8", "replace"))
        path.write_bytes(new_text.encode("utf-8", "surrogatepass"))
        case.done.append(f"{name}: a changed text")
    else:
        new, what = change_bytes(rng, content)
        path.write_bytes(new)
        case.done.append(f"{name}: {what}")


def _replace(rng: Random, case: Case, root: Path, path: Path) -> None:
    """Put something else in the place of a file."""
    kinds = ("none", "empty", "folder", "pipe", "loop", "list", "nested", "digits", "utf")
    kind = rng.choice(kinds)
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind != "none":
        texts = {"list": "[1]", "nested": nested(100_000), "digits": '{"a": ' + "9" * 9999 + "}"}
        path.write_bytes(texts.get(kind, "").encode() or b'\xff\xfe{"a": 1}')
    case.done.append(f"{path.relative_to(root)}: {kind} in its place")


def _change_header(rng: Random, content: bytes) -> tuple[bytes, str]:
    """Weights with another header: a changed tensor, or another length."""
    length = int.from_bytes(content[:8], "little")
    if rng.random() < 0.2:
        stated = rng.choice((0, 1, length - 1, length + 1, 10**6, 10**12, 2**63, 2**64 - 1))
        return stated.to_bytes(8, "little") + content[8:], f"a header of {stated} bytes"
    try:
        header = json.loads(content[8 : 8 + length])
    except ValueError:  # damaged before
        return change_bytes(rng, content)
    what = change_json(rng, header)
    new = to_json(header)
    return len(new).to_bytes(8, "little") + new + content[8 + length :], what


def _media(rng: Random, case: Case, samples: Path, folder: Path) -> None:
    """A damaged video, image or folder of images, planned with or asked about."""
    copy_samples(samples, folder, ("tiny",))
    names = sorted(path.name for path in (samples / "media").iterdir())
    source = samples / "media" / rng.choice(names)
    video = folder / source.name
    if source.is_dir():
        shutil.copytree(source, video)
        _damage_frames(rng, case, video, samples / "media")
    else:
        content = source.read_bytes()
        for _ in range(rng.choice((1, 1, 2, 4))):
            change = inflate if rng.random() < 0.4 else None
            content, what = (
                inflate(rng, content, (WIDTH, HEIGHT)) if change else change_bytes(rng, content)
            )
            case.done.append(f"{video.name}: {what}")
        if rng.random() < 0.15:
            video = video.with_suffix(rng.choice((".mp4", ".png", ".jpg", ".txt", "", ".gif")))
            case.done.append(f"named {video.name}")
        video.write_bytes(content)
    rest = ["--model", "tiny"]
    if rng.random() < 0.2:
        rest += ["--max-frames", rng.choice(("1", "3", "10000000000")), "--fps", "4"]
    if rng.random() < 0.1:
        rest += ["--sampling", "keyframes"]
    if rng.random() < 0.6:
        case.argv = ["plan", video.name, *rest]
    else:
        case.argv = ["ask", video.name, "What?", *rest, "--max-new-tokens", "1"]


def _damage_frames(rng: Random, case: Case, frames: Path, media: Path) -> None:
    """Damage an image of a folder, or add something that does not belong there."""
    victim = rng.choice(sorted(frames.iterdir()))
    kind = rng.randrange(4)
    if kind == 0:
        content, what = inflate(rng, victim.read_bytes(), (WIDTH, HEIGHT))
        victim.write_bytes(content)
    elif kind == 1:
        content, what = change_bytes(rng, victim.read_bytes())
        victim.write_bytes(content)
    elif kind == 2:
        what = rng.choice(("folder", "pipe", "loop", "self"))
        made = frames / "9.jpg"
        {
            "folder": made.mkdir,
            "pipe": lambda: os.mkfifo(made),
            "loop": lambda: made.symlink_to("9.jpg"),
            "self": lambda: made.symlink_to("."),
        }[what]()
    else:
        name = rng.choice(sorted(path.name for path in media.iterdir() if path.is_file()))
        shutil.copyfile(media / name, frames / name)
        what = f"{name} beside them"
    case.done.append(f"{victim.name}: {what}")


def _folder(rng: Random, case: Case, samples: Path, folder: Path) -> None:
    """A damaged manifest, run or folder of results, taken up again by its command."""
    name, argv = rng.choices(
        (
            ("data", ["data", "check", "data"]),
            ("data", ["data", "show", "data", "0"]),
            ("data", ["data", "build", *BUILD, "--out", "data"]),
            ("eval", ["eval", "synthetic", *EVALUATION]),
            ("run", [*TRAIN[:-4], "--set", "optimizer.steps=2", *TRAIN[-4:]]),
            ("run", ["plan", "clip.mp4", "--model", "run/model"]),
            ("data", [*TRAIN]),
            ("text", ["train", "recipe.yaml", "--show"]),
            ("rows", ["data", "build", "rows", *BUILD[1:], "--out", "built"]),
        ),
        (5, 3, 2, 3, 2, 2, 1, 3, 3),
    )[0]
    copy_samples(samples, folder, ("tiny", "clip.mp4", *(() if name == "text" else ("data",))))
    root = folder / name
    if name == "text":
        root = folder
        (root / "recipe.yaml").write_text("extends: tiny\noptimizer:\n  betas: [0.9, 0.99]\n")
        files = [root / "recipe.yaml"]
    else:
        if name == "rows":
            _write_rows(root)
        elif name != "data":
            copy_samples(samples, folder, (name,))
        files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    for _ in range(rng.choice((1, 1, 2))):
        _damage(rng, case, root, rng.choice(files))
    case.argv = argv


def _write_rows(root: Path) -> None:
    root.mkdir()
    turns = [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "Red."}]
    row = {"messages": turns, "videos": ["../clip.mp4"]}
    (root / "rows.jsonl").write_text((json.dumps(row) + "\n") * 3)
    talk = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "Red."}]
    llava = [{"id": "1", "conversations": talk, "data_source": "x", "video": "../clip.mp4"}]
    (root / "llava.json").write_text(json.dumps(llava))
