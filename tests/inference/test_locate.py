"""What a model's name stands for."""

import pytest

from videonsa.errors import ModelError
from videonsa.inference.locate import locate_model


def test_a_folder_stands_for_itself(tmp_path):
    assert locate_model(tmp_path) == str(tmp_path)


def test_a_hub_id_stays_an_id():
    assert locate_model("Enxin/VideoNSA") == "Enxin/VideoNSA"


@pytest.mark.parametrize("name", ["weights", "./weights", "/no/such/folder", "a/b/c", "a b/c", ""])
def test_what_is_neither_folder_nor_id_is_refused(name):
    with pytest.raises(ModelError, match="no folder and no Hugging Face id"):
        locate_model(name)
