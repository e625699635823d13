"""The log of a run: one file a process, read as one, resumed by any number of processes."""

import json
from dataclasses import asdict

import pytest

from videonsa.errors import UsageError
from videonsa.evals.field.sample_line import (
    LineMessage,
    LinePart,
    LineVision,
    SampleLine,
    json_values,
    parse_sample_line,
)
from videonsa.evals.field.sample_log import read_samples, sample_log


def line(doc_id, *, answer="A", failure=None, **more):
    return SampleLine(
        task="tiny",
        split="test",
        doc_id=doc_id,
        messages=(
            LineMessage(role="user", parts=(LinePart(kind="video", text="a.mp4", end=2.0),)),
        ),
        generation={"max_new_tokens": 16, "stop": ["."]},
        doc={"answer": "A"},
        method="nsa",
        method_parameters={"block_size": 64},
        vision=(
            LineVision(
                source="a.mp4",
                kind="video",
                seconds=(0.0, 0.5),
                timestamps=(0.0, 0.5),
                grid=(1, 6, 8),
                height=84,
                width=112,
                tokens=12,
                read_tokens=12,
            ),
        ),
        answer=answer,
        failure=failure,
        **more,
    )


def failed(doc_id):
    return line(doc_id, answer=None, failure="a.mp4: no such file")


def test_a_line_is_read_as_it_was_written():
    one = line(3, prompt_tokens=20, density=0.5, notes=("a note",), seconds=1.5, cached_tokens=4)
    again = parse_sample_line(json.loads(json.dumps(asdict(one))))
    assert again == one
    assert again.without_costs() == line(3, prompt_tokens=20, density=0.5, notes=("a note",))
    assert one.key.text == "tiny/test/3" and line(3, index=2, round=1).key.text == "tiny/test/3.2.1"


def test_a_line_has_an_answer_or_a_failure():
    for answer, failure in ((None, None), ("A", "and why not")):
        with pytest.raises(ValueError, match="an answer, or a failure"):
            line(0, answer=answer, failure=failure)


def test_lines_of_all_processes_are_one_log(tmp_path):
    with sample_log(tmp_path, process=0) as first, sample_log(tmp_path, process=1) as second:
        for number in range(4):
            (first, second)[number % 2].append(line(number))
    assert [one.doc_id for one in read_samples(tmp_path)] == [0, 1, 2, 3]
    with sample_log(tmp_path, process=2) as third:  # a run resumes with other processes
        assert len(third.lines) == 4
        third.append(line(4))
    assert len(read_samples(tmp_path)) == 5


def test_a_line_that_was_cut_off_is_asked_again(tmp_path):
    with sample_log(tmp_path) as log:
        log.append(line(0))
        log.append(line(1))
    path = tmp_path / "samples-0.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with sample_log(tmp_path) as log:
        assert [key.doc_id for key in log.lines] == [0]
        log.append(line(1))
    assert read_samples(tmp_path) == [line(0), line(1)]


def test_of_two_lines_about_a_sample_the_answer_counts(tmp_path):
    for process, one in enumerate((line(0), failed(0), failed(1), line(1))):
        with sample_log(tmp_path, process=process) as log:
            log.append(one)
    assert read_samples(tmp_path) == [line(0), line(1)]


def test_a_process_that_writes_is_not_joined_by_a_second(tmp_path):
    with (
        sample_log(tmp_path),
        pytest.raises(UsageError, match=r"samples-0\.jsonl is being written by a benchmark"),
        sample_log(tmp_path),
    ):
        pass


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"holds no samples-\*\.jsonl"):
        read_samples(tmp_path)


def test_of_a_document_what_json_can_hold_is_kept():
    doc = {
        "question": "What?",
        "options": ["a", "b"],
        "answer": 1,
        "share": float("nan"),
        "image": object(),
        "nested": {"kind": "count", "picture": object()},
        "pictures": [object()],
        "huge": list(range(5000)),
    }
    kept = json_values(doc)
    assert kept.pop("share") == "nan"
    assert kept == {
        "question": "What?",
        "options": ["a", "b"],
        "answer": 1,
        "nested": {"kind": "count"},
    }
