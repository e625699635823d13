"""Lines of `eval synthetic` as samples to show."""

from pathlib import Path

from videonsa.evals.field.scoring.line_scores import LineScore
from videonsa.evals.field.shown import ShownMessage, ShownPart, ShownSample
from videonsa.evals.tasks.suite.suite_line import SuiteLine, read_suite_lines


def suite_samples(folder: Path) -> list[ShownSample]:
    """All samples of a run.

    Raises:
        UsageError: it is no such run.
    """
    return [_shown(line) for line in read_suite_lines(folder)]


def _shown(line: SuiteLine) -> ShownSample:
    video = ShownPart(kind="video", text=f"rendered from seed {line.seed}, {line.condition}")
    scores = [LineScore(scoring="reply", value=float(line.right), parse=line.chosen)]
    if line.likeliest is not None:
        right = float(line.likeliest == line.answer)
        scores.append(LineScore(scoring="likeliest option", value=right, parse=line.likeliest))
    facts = {
        "tokens": f"{line.video_tokens:,} of the video in a prompt of {line.prompt_tokens:,}",
        "method": line.attention,
        "evidence": ", ".join(f"{start:g} to {end:g} s" for start, end in line.evidence),
        "options": ", ".join(line.options),
        "style": line.style,
        "model": line.model,
    }
    return ShownSample(
        key="/".join(map(str, line.key)),
        task=line.kind,
        messages=(ShownMessage(role="user", parts=(video, ShownPart(text=line.question))),),
        truth=line.answer,
        answer=line.reply,
        scores=tuple(scores),
        facts={name: value for name, value in facts.items() if value},
    )
