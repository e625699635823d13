"""How many samples of one manifest are in another too."""

import re
from typing import NamedTuple

from videonsa.data.manifest import Manifest

_MEDIA = re.compile(r'"(?:video|image|script)":("(?:[^"\\]|\\.)*")|"frames":(\[[^\]]*\])')
"""In a record as JSON; in what was said, quotes are escaped."""


class Overlap(NamedTuple):
    """Samples of a manifest that another has too."""

    records: int
    """They are the same to the letter."""
    media: int
    """Others that show a video or an image of the other manifest."""


def overlap(manifest: Manifest, other: Manifest) -> Overlap:
    """Compare all records of two manifests."""
    own = list(manifest.records())
    media = [_media_of(record) for record in own]
    wanted, all_media = set(own), set().union(*media)
    shared: set[str] = set()
    shown: set[str] = set()
    for record in other.records():
        if record in wanted:
            shared.add(record)
        shown |= _media_of(record) & all_media
    same = sum(record in shared for record in own)
    about = sum(
        record not in shared and bool(each & shown) for record, each in zip(own, media, strict=True)
    )
    return Overlap(same, about)


def _media_of(record: str) -> set[str]:
    return {alone or frames for alone, frames in _MEDIA.findall(record)}
