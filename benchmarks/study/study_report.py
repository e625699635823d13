"""`study.json`: any number of seeds, put together by their two files each."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.answering import VideoLine
from benchmarks.study.seed_result import FORMAT, SeedResult, read_seed
from benchmarks.study.study_design import FRAME_TOKENS, Design, Run, Stage
from benchmarks.study.study_statistics import (
    KNOWN,
    REPEATS,
    STYLES,
    Answers,
    accuracies,
    best_constants,
    compare,
)
from videonsa.errors import UsageError
from videonsa.evals.markdown import table
from videonsa.ops.spec import BRANCHES, NSASpec
from videonsa.train.reading import read_recipe

_MAY_DIFFER = ("seeds", "arms", "videos", "stills", "gate_videos")
"""Of the designs of seeds: only what all of them have is compared."""
_LINES = 8
"""Most lines of what was left out that the short table shows."""


def read_seeds(folders: Sequence[Path]) -> list[SeedResult]:
    """All seeds in some folders, in order.

    Raises:
        UsageError: none, one twice, or seeds of different designs.
    """
    paths = sorted(path for folder in folders for path in folder.glob("seed-[0-9]*.json"))
    if not paths:
        raise UsageError(f"no seed-N.json in {', '.join(map(str, folders))}: run a seed first")
    seeds = sorted((read_seed(path) for path in paths), key=lambda one: int(one.facts["seed"]))
    numbers = [one.facts["seed"] for one in seeds]
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"seeds {numbers}: one is there twice; name each folder once")
    designs = [_common(one.facts["design"]) for one in seeds]
    for number, design in zip(numbers, designs, strict=True):
        differ = [name for name in design if design[name] != designs[0].get(name)]
        if differ:
            raise UsageError(
                f"seed {number} was run with another {differ[0]} than seed {numbers[0]}: report "
                "them apart"
            )
    return seeds


def _common(design: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in design.items() if name not in _MAY_DIFFER}


def summarise(seeds: Sequence[SeedResult]) -> dict[str, Any]:
    """All seeds as one JSON object; arms and videos that not all of them have are left out."""
    first = seeds[0].facts
    answers = [one.answers for one in seeds]
    designs = [one.facts["design"] for one in seeds]
    lengths = sorted({length for design in designs for length, _ in design["videos"]})
    found = {length: _of_length(answers, length) for length in lengths}
    arms = list(dict.fromkeys(arm for design in designs for arm in design["arms"]))
    return {
        "format": FORMAT,
        "design": _common(first["design"]) | {"arms": arms},
        "seeds": [one.facts["seed"] for one in seeds],
        "attention": _attention(lengths, first["design"]),
        "runs": [run for one in seeds for run in one.facts["runs"]],
        "stills": {str(one.facts["seed"]): one.facts["stills"] for one in seeds},
        "lengths": [one for one in found.values() if one is not None],
        "gates": _gates([line for one in answers for line in one.get("nsa", ()) if line.only]),
        "left_out": [
            *(
                f"seed {one.facts['seed']}: {line}"
                for one in seeds
                for line in one.facts["left_out"]
            ),
            *(f"{arm}: not of every seed" for arm in arms if not all(arm in x for x in answers)),
            *(
                f"{length:,} tokens: no arm has answers of every seed"
                for length in lengths
                if not found[length]
            ),
            *(line for one in found.values() if one is not None for line in _without_headroom(one)),
        ],
        "machine": first["machine"],
        "machines": [one.facts["machine"] for one in seeds],
    }


def _of_length(
    seeds: Sequence[Mapping[str, Sequence[VideoLine]]], length: int
) -> dict[str, Any] | None:
    """Everything about videos of a length; None where no arm of all seeds has answered any."""
    found = {style: Answers.of(seeds, length, style) for style in STYLES}
    free = found["free"]
    if free is None:
        return None
    some = seeds[0][free.arms[0]]
    lines = [line for line in some if line.length == length and not line.only]
    return {
        "length": length,
        "videos": free.right.shape[2],
        "questions": int(free.asked.sum()),
        "constant": best_constants(lines),
        "accuracy": [
            entry for style in STYLES if (one := found[style]) for entry in accuracies(one, style)
        ],
        "compared": {style: compare(one) for style in STYLES if (one := found[style])},
    }


def _gates(lines: Sequence[VideoLine]) -> dict[str, Any]:
    """By kind, the mean gate of each layer and branch, over the videos of that kind alone."""
    kinds = sorted({line.only for line in lines})
    return {
        "branches": list(BRANCHES),
        "kinds": {
            kind: np.mean([line.gates for line in lines if line.only == kind], axis=0)
            .round(3)
            .tolist()
            for kind in kinds
        },
    }


def _without_headroom(one: Mapping[str, Any]) -> Iterator[str]:
    """What of a length was left out of the intervals of shares."""
    for arm, found in one["compared"]["free"]["recovered"].items():
        if found["draws_left_out"]:
            yield (
                f"{one['length']:,} tokens, {arm}: {found['draws_left_out']} of {REPEATS:,} draws "
                "of the bootstrap have no headroom"
            )


def _attention(lengths: Sequence[int], stated: Mapping[str, Any]) -> dict[str, Any]:
    """What a vision token attends to under NSA, and its share of dense causal attention."""
    stages = tuple(Stage(name=one["name"], sources=()) for one in stated["stages"])
    design = Design(stages=stages, settings=tuple(stated["settings"]))
    last = Run(stage=stages[-1].name, seed=0, arm="nsa")
    settings = design.settings_of(last, Path())
    attention = read_recipe(stages[-1].recipe, settings=settings).attention
    spec = NSASpec.paper(
        block_size=attention.block_size,
        num_selected_blocks=attention.num_selected_blocks,
        window_size=attention.window_size,
    )
    return {
        "num_selected_blocks": attention.num_selected_blocks,
        "window_size": attention.window_size,
        "keys": spec.attention_keys(FRAME_TOKENS),
        "shares": {str(length): attended_shares(spec, length) for length in lengths},
    }


def attended_shares(spec: NSASpec, tokens: int) -> dict[str, float]:
    """(query, key) pairs of the vision tokens of a video, over those of dense causal attention.

    Args:
        spec: with blocks of a frame of `FRAME_TOKENS`.
        tokens: of the video.

    Returns:
        `selected_and_window`: the keys that the paper counts, at most K a query, or all up to the
            query if those are fewer. `all`: also the compressed keys, one for each frame before
            the query's own.
    """
    selected = spec.attention_keys(FRAME_TOKENS) - spec.window_size
    dense = tokens * (tokens + 1) // 2
    pairs = sum(_up_to(tokens, most) for most in (selected, spec.window_size))
    frames = tokens // FRAME_TOKENS
    compressed = FRAME_TOKENS * frames * (frames - 1) // 2
    return {"selected_and_window": pairs / dense, "all": (pairs + compressed) / dense}


def _up_to(tokens: int, most: int) -> int:
    """Keys of all queries together, where each has at most `most` of those up to its own."""
    rising = min(tokens, most)
    return rising * (rising + 1) // 2 + max(tokens - most, 0) * most


def short_table(result: Mapping[str, Any]) -> str:
    """The free accuracy of every arm and length, and what is recovered; for the end of a run."""
    arms = list(dict.fromkeys(x["arm"] for one in result["lengths"] for x in one["accuracy"]))
    rows = []
    for one in result["lengths"]:
        free = [x for x in one["accuracy"] if x["style"] == "free"]
        means = {x["arm"]: x["value"] for x in free if x["kind"] == "mean"}
        known = sum(
            x["arm"] == "dense" and x["kind"] != "mean" and x["value"] >= KNOWN for x in free
        )
        constant = one["constant"].values()
        recovered = one["compared"]["free"]["recovered"]
        rows.append(
            [
                f"{one['length']:,}",
                str(one["videos"]),
                f"{100 * sum(constant) / len(constant):.1f}",
                *(f"{100 * means[arm]:.1f}" if arm in means else "-" for arm in arms),
                f"{known} of {len(constant)}",
                *(_share(recovered.get(arm)) for arm in ("nsa", "random")),
            ]
        )
    head = ["tokens", "videos", "constant", *arms, "dense knows", "nsa recovers", "random"]
    left_out = [f"left out: {line}\n" for line in result["left_out"]]
    more = [f"left out: {len(left_out) - _LINES} more\n"] if len(left_out) > _LINES else []
    return table(head, rows) + "".join([*left_out[:_LINES], *more])


def _share(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    value, low, high = (100 * found["share"][name] for name in ("value", "low", "high"))
    return f"{value:.0f} % ({low:.0f} to {high:.0f})"


def result_text(result: Mapping[str, Any]) -> str:
    """The JSON of `study.json`."""
    return json.dumps(result, indent=1, allow_nan=False) + "\n"
