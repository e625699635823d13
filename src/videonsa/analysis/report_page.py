"""All findings of a folder on one HTML page that needs no network."""

import json
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import Any

from videonsa.analysis.finding import Finding
from videonsa.analysis.look import DARK, LIGHT, picture
from videonsa.analysis.registry import FINDINGS
from videonsa.webpage import style

_STYLE = """
body { max-width: 60rem; line-height: 1.55; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; border-top: 1px solid var(--line);
  padding-top: 1.2rem; margin-top: 2rem; }
a { color: var(--accent); } img { width: 100%; height: auto; }
.claim, .facts, footer { color: var(--muted); } .claim { font-style: italic; }
nav ul { columns: 2; padding-left: 1.2rem; }
pre { overflow-x: auto; font-size: 0.8rem; max-height: 30rem; }
summary { cursor: pointer; }
@media (max-width: 36rem) { nav ul { columns: 1; } }
"""


def report_page(findings: Sequence[Finding]) -> str:
    """The page, in the order of the registry.

    Args:
        findings: one at least; several of one name stand one after the other.
    """
    order = list(FINDINGS)
    ranked = sorted(findings, key=lambda one: order.index(one.name))
    places = [f"{one.name}-{number}" for number, one in enumerate(ranked, start=1)]
    links = "".join(
        f'<li><a href="#{place}">{escape(FINDINGS[one.name].title)}</a></li>'
        for place, one in zip(places, ranked, strict=True)
    )
    sections = "".join(map(_section, places, ranked))
    models = ", ".join(sorted({one.facts.model for one in ranked}))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>Findings: {escape(models)}</title><style>{style()}{_STYLE}</style></head><body>"
        f"<header><h1>What was measured on {escape(models)}</h1>{_lead(ranked)}</header>"
        f'<nav aria-label="Findings"><ul>{links}</ul></nav><main>{sections}</main>'
        "<footer><p>Made by videonsa analyze report from the JSON of the findings alone.</p>"
        "</footer></body></html>\n"
    )


def _lead(findings: Sequence[Finding]) -> str:
    """Says first that a model is there to show the output."""
    if not any(one.facts.demonstration for one in findings):
        return ""
    return (
        "<p><strong>The embedded model is a demonstration: it has 5 layers and has learnt rendered "
        "clips alone. Its numbers show what the output looks like, and say nothing about real "
        "videos or larger models.</strong></p>"
    )


def _section(place: str, one: Finding) -> str:
    entry = FINDINGS[one.name]
    told = "".join(f"<li>{escape(sentence)}</li>" for sentence in one.sentences())
    notes = "".join(f"<li>{escape(note)}</li>" for note in one.facts.notes)
    content = json.dumps(one.to_json(), indent=1)
    return (
        f'<section id="{place}" aria-labelledby="{place}-title">'
        f'<h2 id="{place}-title">{escape(entry.title)}</h2>'
        f'<p class="claim">The paper: {escape(entry.claim)}</p>'
        f"<ul>{told}</ul>{_picture(one, entry.title)}"
        f'<p class="facts">{escape(_facts_text(one))}</p>'
        f"{f'<ul class=facts>{notes}</ul>' if notes else ''}"
        "<details><summary>The numbers as JSON</summary>"
        f'<pre tabindex="0">{escape(content)}</pre></details></section>'
    )


def _picture(one: Finding, title: str) -> str:
    light, dark = (_inlined(picture(one, look, kind="svg")) for look in (LIGHT, DARK))
    alt = escape(f"{title}: " + " ".join(one.sentences()), quote=True)
    return (
        f'<picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{alt}"></picture>'
    )


def _inlined(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + b64encode(svg).decode()


def _facts_text(one: Finding) -> str:
    facts = one.facts
    machine: dict[str, Any] = facts.machine
    asked = ", ".join(f"{key} {_value(value)}" for key, value in facts.asked.items())
    return (
        f"{facts.model}, {facts.method}, {facts.dtype} on {machine.get('device')}; commit "
        f"{machine.get('commit')}; measured in {facts.seconds:.0f} s; asked: {asked or 'nothing'}."
    )


def _value(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
