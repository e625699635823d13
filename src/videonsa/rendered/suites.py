"""Which suite a video belongs to: the first, or the second with its stills and richer kinds."""

from videonsa.errors import UsageError
from videonsa.rendered import suite, suite2
from videonsa.rendered.suite import Script, SuiteSpec
from videonsa.rendered.suite2 import Script2, Suite2Spec

SPECS: dict[int, type[SuiteSpec]] = {1: SuiteSpec, 2: Suite2Spec}
KINDS: dict[int, tuple[str, ...]] = {1: suite.KINDS, 2: suite2.KINDS}
"""Kinds of question of each suite."""


def check_suite(number: int) -> None:
    """Refuse suites that there are not: UsageError."""
    if number not in SPECS:
        raise UsageError(f"suite={number}: want {' or '.join(map(str, SPECS))}")


def suite_of(spec: SuiteSpec) -> int:
    """Number of the suite of a spec."""
    return 2 if isinstance(spec, Suite2Spec) else 1


def script_from(seed: int, *, spec: SuiteSpec) -> Script:
    """Draw the video of either suite that follows from a seed and a spec."""
    if isinstance(spec, Suite2Spec):
        return suite2.make_script2(seed, spec=spec)
    return suite.make_script(seed, spec=spec)


def read_answer(script: Script, question_text: str) -> str:
    """What the oracle of its suite answers: see `oracle` and `oracle2`."""
    if isinstance(script, Script2):
        return suite2.oracle2(script, question_text)
    return suite.oracle(script, question_text)
