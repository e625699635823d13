"""The second suite: stills and videos, many questions each, of more kinds than the first."""

from videonsa.rendered.suite2.levels2 import ANY, KINDS, STILL_KINDS
from videonsa.rendered.suite2.oracle2 import oracle2
from videonsa.rendered.suite2.script2 import Script2, make_script2
from videonsa.rendered.suite2.spec2 import Suite2Spec, min_frames2

__all__ = [
    "ANY",
    "KINDS",
    "STILL_KINDS",
    "Script2",
    "Suite2Spec",
    "make_script2",
    "min_frames2",
    "oracle2",
]
