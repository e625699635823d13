"""What a model's name stands for."""

import pytest

from videonsa.errors import ModelError
from videonsa.models.locate import locate_model


def test_a_folder_stands_for_itself(tmp_path):
    assert locate_model(tmp_path) == str(tmp_path)


def test_a_hub_id_stays_an_id():
    assert locate_model("Enxin/VideoNSA") == "Enxin/VideoNSA"


@pytest.mark.parametrize("name", ["weights", "./weights", "/no/such/folder", "a/b/c", "a b/c", ""])
def test_what_is_neither_folder_nor_id_is_refused(name):
    with pytest.raises(ModelError, match="no folder and no Hugging Face id"):
        locate_model(name)


@pytest.fixture
def run(tmp_path):
    """The folder of a training run with two checkpoints, as it is before the end."""
    for name in ("run.json", "log.jsonl", "recipe.yaml"):
        (tmp_path / name).write_text("{}")
    for step in (4, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    return tmp_path


def test_the_folder_of_a_run_stands_for_the_model_that_it_trained(run):
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    assert locate_model(run) == str(run / "model")
    assert locate_model(run / "checkpoint-4") == str(run / "checkpoint-4")


def test_a_run_without_a_model_names_its_checkpoints(run):
    with pytest.raises(ModelError, match=r"no model/ yet.*\(checkpoint-4, checkpoint-10\)"):
        locate_model(run)


def test_a_run_without_checkpoints_says_so(tmp_path):
    for name in ("run.json", "log.jsonl"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match="it has none"):
        locate_model(tmp_path)
