"""`baselines.json`: accuracy against attention computed, and what each method loses, in words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from benchmarks.baselines.asking import SettingLine
from benchmarks.baselines.baseline_design import Comparison, Setting, unswept
from benchmarks.study.study_statistics import (
    REPEATS,
    Answers,
    accuracies,
    best_constants,
    compare,
)
from videonsa.models.methods.registry import METHODS

FORMAT = "videonsa baselines 1"
DENSE, NSA = "dense", "nsa"
AS_MUCH = 0.98
"""A setting computes as much as NSA from this share of NSA's on."""
TOLD_QUESTIONS, TOLD_POINTS = 10, 15.0
"""A kind is named that a method loses so many points in, over at least so many questions."""
HOW = (
    "every question stands in a prompt of its own, which the method reads in one go; free: greedy "
    "decoding writes the right answer and ends; accuracy is the mean over kinds of questions; "
    "attention is the share of the query-key pairs of dense attention to the whole prompt that all "
    "layers and heads computed, of NSA its compressed keys included; what a method computes to "
    "choose keys or tokens is not in it; kept is the mean over layers "
    f"of the vision tokens left; intervals are 95 % of {REPEATS} draws of videos with replacement, "
    "the same for all methods, so that differences from dense attention are paired"
)


class Facts(NamedTuple):
    """Of the machine that asked."""

    machine: dict[str, Any]
    answerers: int


def summarise(comparison: Comparison, lines: Sequence[SettingLine], facts: Facts) -> dict[str, Any]:
    """Everything that was asked, as JSON keeps it."""
    asked = sorted({line.length for line in lines})
    lengths = [one for length in asked if (one := _of_length(comparison, lines, length))]
    return {
        "format": FORMAT,
        "design": asdict(comparison),
        "how": HOW,
        "methods": {
            name: {"what": METHODS[name].what, "paper": METHODS[name].paper}
            for name in comparison.methods
        },
        "lengths": lengths,
        "sentences": {
            method: sentence
            for method in comparison.methods
            if method != DENSE and (sentence := sentence_of(method, lengths))
        },
        "notes": list(dict.fromkeys(line.note for line in lines if line.note)),
        "left_out": list(_left_out(comparison, lines, lengths)),
        "seconds": round(sum(line.seconds + line.encode_seconds for line in lines), 1),
        "answerers": facts.answerers,
        "machine": facts.machine,
    }


def _of_length(
    comparison: Comparison, lines: Sequence[SettingLine], length: int
) -> dict[str, Any] | None:
    """The videos of a length that every setting answered; None where there is none."""
    by_setting: dict[str, list[SettingLine]] = {}
    for line in lines:
        if line.length == length:
            by_setting.setdefault(line.setting, []).append(line)
    ran = {
        one.name: found
        for one in comparison.settings()
        if (found := by_setting.get(one.name)) and not any(line.reason for line in found)
    }
    answers = Answers.of([ran], length, "free") if ran else None
    likeliest = Answers.of([ran], length, "likeliest") if ran else None
    if answers is None or likeliest is None:
        return None
    free = {(one["arm"], one["kind"]): one for one in accuracies(answers, "free")}
    other = {(one["arm"], one["kind"]): one for one in accuracies(likeliest, "likeliest")}
    differences = compare(answers)["differences"]
    some = ran[answers.arms[0]]
    cells = [
        _cell(one, ran[one.name], free, differences) | {"likeliest": other[one.name, "mean"]}
        for one in comparison.settings()
        if one.name in ran
    ]
    return {
        "length": length,
        "videos": answers.right.shape[2],
        "questions": int(answers.asked.sum()),
        "of_kind": dict(zip(answers.kinds, map(int, answers.asked.sum(0)), strict=True)),
        "constant": best_constants(some),
        "cells": cells,
        "equal": _equal(cells),
    }


def _cell(
    setting: Setting,
    lines: Sequence[SettingLine],
    scores: Mapping[tuple[str, str], dict[str, Any]],
    differences: Mapping[str, Any],
) -> dict[str, Any]:
    """What came of a setting at one length."""
    own = {kind: one for (arm, kind), one in scores.items() if arm == setting.name}
    return {
        "setting": setting.name,
        "method": setting.method,
        "arm": setting.arm,
        "published": setting.is_published,
        "attention": round(sum(line.attention for line in lines) / len(lines), 6),
        "kept": round(sum(line.kept for line in lines) / len(lines), 6),
        "accuracy": {name: own["mean"][name] for name in ("value", "low", "high", "error")},
        "difference": differences.get(setting.name),
        "by_kind": {kind: one["value"] for kind, one in own.items() if kind != "mean"},
        "seconds": round(sum(line.seconds for line in lines), 1),
    }


def _equal(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each method, the cheapest setting that computes as much as NSA; else its most expensive.

    So no method is held to less attention than NSA where it has a setting with more.
    """
    budget = next((one["attention"] for one in cells if one["method"] == NSA), None)
    if budget is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(one["method"] for one in cells):
        own = sorted(
            (one for one in cells if one["method"] == method), key=lambda one: one["attention"]
        )
        enough = [one for one in own if one["attention"] >= AS_MUCH * budget]
        chosen = enough[0] if enough else own[-1]
        found[method] = {"setting": chosen["setting"], "computes_less": not enough}
    return found


def sentence_of(method: str, lengths: Sequence[Mapping[str, Any]]) -> str:
    """What a method loses against dense attention, in a sentence; empty where it was not asked.

    With NSA beside it at NSA's share of attention, else as it is published.
    """
    chosen = [
        (one, cell) for one in lengths if (cell := _chosen(one, method)) and cell["difference"]
    ]
    if not chosen:
        return ""
    names = ", ".join(dict.fromkeys(f"`{cell['setting']}`" for _, cell in chosen))
    shares = ", ".join(f"{100 * cell['attention']:.3g}" for _, cell in chosen)
    at = ", ".join(f"{one['length']:,}" for one, _ in chosen)
    told = [_loss(one, cell) for one, cell in chosen]
    return f"{names} computes {shares} % of dense attention at {at} tokens: {'; '.join(told)}."


def _chosen(one: Mapping[str, Any], method: str) -> Mapping[str, Any] | None:
    own = {cell["setting"]: cell for cell in one["cells"] if cell["method"] == method}
    chosen: str = one["equal"].get(method, {}).get("setting", method)
    return own.get(chosen, next(iter(own.values()), None))


def _loss(one: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    """The difference from dense attention at a length; one that may be none is called so."""
    points = cell["difference"]["points"]
    value, low, high = points["value"], points["low"], points["high"]
    at = f"at {one['length']:,} tokens"
    if low <= 0 <= high:
        return f"no loss shows {at} ({value:+.1f} points, {low:+.1f} to {high:+.1f})"
    if value > 0:
        return f"it gains {value:.1f} points {at} ({low:.1f} to {high:.1f})"
    most = _worst_kind(one, cell)
    return f"it loses {-value:.1f} points {at} ({-high:.1f} to {-low:.1f}){most}"


def _worst_kind(one: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    """The kind that it loses most in, where that is much; else nothing."""
    dense = next(x for x in one["cells"] if x["method"] == DENSE)["by_kind"]
    losses = [
        (100 * (cell["by_kind"][kind] - dense[kind]), kind)
        for kind, count in one["of_kind"].items()
        if count >= TOLD_QUESTIONS
    ]
    loss, kind = min(losses, default=(0.0, ""))
    if loss > -TOLD_POINTS:
        return ""
    return f", most in `{kind}` ({100 * dense[kind]:.0f} to {100 * cell['by_kind'][kind]:.0f} %)"


def _left_out(
    comparison: Comparison, lines: Sequence[SettingLine], lengths: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """What was refused or not finished, a line each."""
    settings = {one.name for one in comparison.settings()}
    reasons = dict.fromkeys(
        (line.setting, line.length, line.reason)
        for line in lines
        if line.reason and line.setting in settings
    )
    yield from (f"{name} at {length:,} tokens: {reason}" for name, length, reason in reasons)
    found = {one["length"]: one for one in lengths}
    for length, count in comparison.videos:
        answered = found.get(length, {"videos": 0})["videos"]
        if answered < count:
            yield f"{length:,} tokens: {answered} of {count} videos have answers of every setting"
    yield from (f"{name}: it has no sweep here" for name in unswept())
