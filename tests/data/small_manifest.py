"""Manifests of a few small files, for the tests of this folder."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from videonsa.data.filter import FilterOptions, Found, judge, media_facts, without_cap
from videonsa.data.manifest import BuildFacts, Manifest, ManifestWriter, read_manifest
from videonsa.data.media import path_of, script_of_media
from videonsa.data.probe_journal import FileState
from videonsa.data.records import Media, Record, Text, Turn
from videonsa.data.scripts import script_info
from videonsa.data.tokens import hash_of_tokenizer
from videonsa.video.decode import probe

OPTIONS = {"fps": 2.0, "min_frames": 0, "max_frames": 768, "max_pixels": 28 * 28 * 6}
SAMPLING = FilterOptions(**OPTIONS).sampling


def record(name: str, *media: Media, answer: str = "Yes.", turns: int = 1) -> Record:
    """Asked about the media in the first turn, then without."""
    said = []
    for turn in range(turns):
        shown = media if turn == 0 else ()
        said += [
            Turn(role="user", parts=(*shown, Text(f"What of {name}, {turn}?"))),
            Turn(role="assistant", parts=(Text(answer),)),
        ]
    return Record(id=name, source="test", turns=tuple(said))


def write_manifest(
    path: Path, records: Sequence[Record], tokenizer, *, max_tokens: int | None = None
) -> Manifest:
    """Counts what the files say; they may be broken later."""
    options = FilterOptions(**OPTIONS, max_tokens=max_tokens)
    facts = BuildFacts(
        sampling=options.sampling,
        max_tokens=max_tokens,
        system=options.system,
        model="embedded",
        tokenizer_hash=hash_of_tokenizer(tokenizer),
        options=asdict(options),
    )
    with ManifestWriter(path, facts=facts) as writer:
        for one in records:
            found = tuple(media_facts(_found(media), without_cap(SAMPLING)) for media in one.media)
            writer.write(judge(one, found, options=options, tokenizer=tokenizer))
    return read_manifest(path)


def _found(media: Media) -> Found:
    script = script_of_media(media)
    info = probe(path_of(media)) if script is None else script_info(script)
    return Found(media, FileState("", 0, 0), info)
