import pytest

from videonsa import env
from videonsa.errors import UsageError

NAMES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK")


def start(monkeypatch, **variables):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "counts"),
    [
        ({}, (1, 1)),
        ({"WORLD_SIZE": "8", "RANK": "7", "LOCAL_RANK": "7"}, (8, 8)),
        ({"WORLD_SIZE": "8", "RANK": "7", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}, (8, 4)),
    ],
)
def test_the_processes_that_a_launcher_started(monkeypatch, variables, counts):
    start(monkeypatch, **variables)
    assert (env.num_processes(), env.processes_here()) == counts


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        *(({name: "x"}, f"{name}='x': want a whole number") for name in NAMES),
        *(({name: text}, f"{name}=.*want a whole number") for name in NAMES for text in ("-1", "")),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0': want a whole number from 1 on"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE='9999"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 with 2 processes, .* want at most 1"),
        ({"RANK": "1"}, "RANK=1 with 1 processes, .* want at most 0"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "5"}, "LOCAL_RANK=5 .* want at most 1"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3 .* want at most 2"),
    ],
)
def test_variables_that_no_launcher_sets_are_named(monkeypatch, variables, message):
    start(monkeypatch, **variables)
    with pytest.raises(UsageError, match=message):
        env.num_processes()
