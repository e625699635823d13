import pytest
import torch

from benchmarks.study.base_model import SIZES
from benchmarks.study.position_probe import BEFORE, EMPTY, SECTIONS, SIDE, TASKS, _batch, run


@pytest.mark.parametrize("task", TASKS)
def test_answers_follow_from_where_the_asked_objects_stand(task):
    torch.manual_seed(1)
    ids, positions, answers = _batch(task)
    frame = ids[:, BEFORE : BEFORE + SIDE**2]
    assert ((frame != EMPTY).sum(1) == 3).all()
    for sample, answer in enumerate(answers.tolist()):
        asked = ids[sample, -1:] if task == "place" else ids[sample, -2:]
        where = [int((frame[sample] == name).nonzero()) for name in asked]
        (row, column), *others = [
            positions[1:, sample, BEFORE + place].sub(BEFORE).tolist() for place in where
        ]
        if task == "place":
            assert answer == 2 * (row // 2) + column // 2
            continue
        down, right = row - others[0][0], column - others[0][1]
        assert answer == ((down < 0) if abs(down) >= abs(right) else 2 + (right < 0))


@pytest.mark.parametrize("sections", SECTIONS)
def test_a_run_tells_the_accuracy_so_far(sections):
    found = run("place", sections, 2)
    assert len(found["accuracy"]) == 1 and 0 <= found["accuracy"][0] <= 1


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_rows_and_columns_of_the_study_turn_by_fast_pairs_too(size):
    rope = size.config().text_config.rope_parameters
    pairs = size.hidden // size.heads // 2
    assert rope["mrope_section"] == [1] * pairs
