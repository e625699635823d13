"""`videonsa eval table` and `eval show` on a scored run of a benchmark."""

import csv
import json
from dataclasses import asdict

import pytest

from videonsa.cli.main import main
from videonsa.evals.field.recipe import changed_recipe, differences, read_recipe
from videonsa.evals.field.sample_line import LineMessage, LinePart, SampleLine
from videonsa.evals.field.sample_log import sample_log
from videonsa.evals.field.scored_run import RunConfig, score_run
from videonsa.evals.journal import write_run


def line(doc_id, answer):
    parts = (LinePart(kind="video", text=f"{doc_id}.mp4"), LinePart(kind="text", text="Which?"))
    return SampleLine(
        **{"task": "timescope", "split": "test", "doc_id": doc_id, "generation": {}},
        **{"messages": (LineMessage(role="user", parts=parts),), "doc": {"answer": "A"}},
        **{"method": "dense", "method_parameters": None, "prompt_tokens": 300, "answer": answer},
        failure=None if answer else "2.mp4: no frames",
    )


@pytest.fixture
def run(tmp_path):
    published = read_recipe("timescope")
    recipe = changed_recipe(published, ["max_frames=64"])
    config = RunConfig(
        **{"benchmark": "timescope", "recipe": published.title, "settings": asdict(recipe)},
        **{"differences": differences(recipe, published), "settings_digest": recipe.digest},
        **{"model": "embedded", "demonstration": True},
        **{"method": "dense", "method_parameters": None, "weights_dtype": "float32", "limit": 3},
        **{"batch_size": 1, "lmms_eval": "0.7.3"},
    )
    folder = tmp_path / "run"
    folder.mkdir()
    write_run(folder, {"config": asdict(config), "machine": {}, "seconds": 1.0})
    with sample_log(folder) as journal:
        for doc_id, answer in enumerate(("A", "B", None)):
            journal.append(line(doc_id, answer))
    score_run(folder, {"timescope": "it is not here"})
    return folder


def test_the_table_has_the_papers_values_ours_and_what_differs(run, tmp_path, capsys):
    out = tmp_path / "table.csv"
    assert main(["eval", "table", str(run), str(run), "--csv", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.count("embedded demonstration model, which knows") == 1
    row = next(one for one in text.splitlines() if one.startswith("| TimeScope"))
    assert "81.0 (1: Qwen2.5-VL-7B)" in row and "56.1" not in row
    assert "| not scored | 3 (1 failed) | 300, 300 (131,072) | **NOT COMPARABLE**" in row
    assert "50.0 (0.0-100.0); over all 33.3" in row
    assert "frames 64 (paper: 2048)" in row and "max_frames 64 (recipe: 2048)" in row
    assert "the first 3 documents" in row
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 and rows[0]["paper_score"] == "50.0"
    assert main(["eval", "table", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"][0]["paper"][0]["value"] == 81.0


def test_scores_of_an_earlier_state_of_the_log_are_said_to_be_so(run, capsys):
    def told():
        """What the table and the samples say of it, without what comes after the colon."""
        assert main(["eval", "table", str(run)]) == main(["eval", "show", str(run)]) == 0
        shown = capsys.readouterr()
        row = next(one for one in shown.out.splitlines() if one.startswith("| TimeScope"))
        found = [
            one for one in (*row.split("<br>"), *shown.err.splitlines()) if "scores.json" in one
        ]
        return [one.partition(":")[0] for one in found]

    said = "scores.json is of an earlier state of the log, 3 samples (1 failed); now "
    assert told() == []
    with sample_log(run) as journal:
        journal.append(line(2, "A"))  # the one that had failed, asked again
    assert told() == [f"{said}3 (0 failed)"] * 2
    with sample_log(run) as journal:
        journal.append(line(3, "C"))
    assert told() == [f"{said}4 (0 failed)"] * 2
    score_run(run, {"timescope": "it is not here"})
    assert told() == []
    (run / "samples-0.jsonl").unlink()
    assert main(["eval", "table", str(run)]) == 0
    assert "scores.json stands alone: without samples-*.jsonl nothing" in capsys.readouterr().out


def test_samples_of_a_benchmark_are_shown_with_both_scores(run, capsys):
    assert main(["eval", "show", str(run), "--sample", "timescope/1"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("== timescope/test/1: wrong\n")
    assert "score      0 by paper, parsed 'B'\n" in text
    assert "score      none by lmms-0.7.3: it is not here\n" in text
    assert main(["eval", "show", str(run), "--failed", "--json"]) == 0
    (sample,) = json.loads(capsys.readouterr().out)["samples"]
    assert sample["failure"] == "2.mp4: no frames" and sample["scores"] == []
    page = run / "page.html"
    assert main(["eval", "show", str(run), "--page", str(page)]) == 0
    assert "<h1>timescope: embedded with dense, recipe paper v1" in page.read_text()
    assert "NOT COMPARABLE: the model is the embedded" in page.read_text()


def test_what_is_no_scored_run_is_refused_in_one_line(run, tmp_path, capsys):
    (run / "scores.json").unlink()
    for folder, message in ((run, "scores.json cannot be read"), (tmp_path, "holds no run.json")):
        assert main(["eval", "table", str(folder)]) == 2
        (told,) = capsys.readouterr().err.splitlines()
        assert message in told
