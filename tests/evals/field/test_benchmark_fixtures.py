"""Fixtures of the field's benchmarks: what is written, and that it is what their rows name."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from videonsa.errors import UsageError
from videonsa.evals.field.fixtures.hub_cache import (
    FIXTURES,
    fixture_of,
    offline_variables,
    write_fixtures,
)
from videonsa.evals.field.tasks import FOLDERS, PACKAGES
from videonsa.video.decode import probe


def test_every_listed_task_has_a_fixture():
    listed = [
        "longvideobench_val_v",
        "mlvu_dev",
        "mlvu_test",
        "timescope",
        "longtimescope",
        "tomato",
        "vsibench",
        "lsdbench",
        "videoevalpro",
        "videomme",
        "videomme_v2",
        "lvbench",
        "mvbench",
    ]
    assert [fixture_of(task) for task in listed] == list(FIXTURES)
    with pytest.raises(UsageError, match="no fixture for the task 'mmlu'"):
        fixture_of("mmlu")


def test_a_written_fixture_holds_its_rows_and_videos_and_nothing_else(tmp_path):
    write_fixtures(tmp_path, ["timescope", "timescope"])
    fixture = fixture_of("timescope")
    folder = tmp_path / "datasets/Apollo-LMMs___time_scope/default/0.0.0/fixture"
    with pa.memory_map(str(folder / "time_scope-test.arrow")) as source:
        rows = pa.ipc.open_stream(source).read_all().to_pylist()
    assert rows == list(fixture.rows["default"])
    assert json.loads((folder / "dataset_info.json").read_text())["splits"]["test"]["num_examples"]
    videos = [row["video"] for row in rows]
    media = tmp_path / "timescope"
    written = {path.relative_to(media).as_posix() for path in media.rglob("*.mp4")}
    assert written == set(videos)
    assert probe(media / videos[0]).duration == 8.0
    assert {path.name for path in tmp_path.iterdir()} == {"datasets", "drawn", "timescope"}


def test_the_environment_names_the_folder_and_closes_the_network(tmp_path):
    variables = offline_variables(tmp_path)
    assert variables["HF_HOME"] == str(tmp_path)
    assert variables["HF_HUB_OFFLINE"] == variables["HF_DATASETS_OFFLINE"] == "1"


def test_the_docs_name_each_package_that_tasks_import():
    page = (Path(__file__).parents[3] / "docs/evaluation.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for task, folder in FOLDERS.items():
        if not task.startswith("mvbench_"):
            (row,) = (row for row in rows if f"`{task}`" in row.split("|")[1])
            for package in PACKAGES.get(folder, {}).values():
                assert f"`{package}`" in row, task
