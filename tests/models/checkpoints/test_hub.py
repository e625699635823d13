"""Which folder a name stands for, and what is said where there is none."""

import pytest

from videonsa.errors import ModelError, UsageError
from videonsa.models.checkpoints.hub import model_folder


@pytest.fixture
def unreachable(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)


def test_a_folder_stands_for_itself(tmp_path):
    assert model_folder(tmp_path) == tmp_path


def test_an_id_is_fetched_at_its_revision(tmp_path, monkeypatch):
    asked = []

    def fetch(name, **options):
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert model_folder("owner/name", revision="v2", patterns=("*.json",)) == tmp_path
    options = {"revision": "v2", "allow_patterns": ["*.json"], "local_files_only": False}
    assert asked == [("owner/name", options)]


@pytest.mark.parametrize("revision", ["main", "", " "])
def test_a_folder_has_no_revisions(tmp_path, revision):
    with pytest.raises(UsageError, match="revision"):
        model_folder(tmp_path, revision=revision)


@pytest.mark.parametrize(
    "name",
    [
        "no-such-model",
        "a/b/c",
        "/no/such",
        "owner/na me",
        "",
        "é/a",
        "~nobody/a/b",
        "a" * 9999,
        "\0",
    ],
)
def test_what_is_neither_folder_nor_id_is_refused(name):
    with pytest.raises(ModelError, match="no folder and no Hugging Face id"):
        model_folder(name)


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2.5-VL-7B-Instruct", "Enxin/VideoNSA", "me/llava-data-qwen2.5-vl", "a/b"]
)
def test_an_id_that_may_be_readable_is_unreachable(name):
    with pytest.raises(ModelError, match="nor reachable") as caught:
        model_folder(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="at revision 'v2' is neither"):
        model_folder(name, revision="v2")


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Qwen/Qwen3-VL-8B-Instruct", "qwen3-vl"),
        ("Qwen/Qwen2-VL-7B-Instruct", "qwen2-vl"),
        ("llava-hf/llava-1.5-7b-hf", "llava"),
    ],
)
def test_an_id_of_another_family_is_called_that(name, family):
    with pytest.raises(ModelError, match=rf"of another family \({family}, by its id\)"):
        model_folder(name)
