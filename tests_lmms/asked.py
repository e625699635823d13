"""What a task asks about a document, and what it scores answers."""

from collections.abc import Mapping

from videonsa.evals.field.tasks import LmmsScoring, LmmsTotals, load_tasks


def prompt(task: str, doc_id: int) -> tuple[list[str], str]:
    """Paths of the videos of a prompt, and its text."""
    (one,) = load_tasks(task)
    (message,) = one.messages(doc_id)
    *videos, text = message["content"]
    assert message["role"] == "user" and {video["type"] for video in videos} == {"video"}
    return [video["url"] for video in videos], text["text"]


def scored(
    task: str, answers: Mapping[int, str]
) -> tuple[list[tuple[float, str | None]], LmmsTotals]:
    """Of each document with an answer: value and parse; and the totals."""
    (one,) = load_tasks(task)
    scoring = LmmsScoring(task)
    scores = [scoring.score(dict(one.docs[i]), i, answer) for i, answer in answers.items()]
    totals = scoring.totals(scores)
    return [(score.value, score.parse) for score in scores], totals
