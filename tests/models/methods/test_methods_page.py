"""docs/methods.md has every method: a row of the table, and a section."""

import re
from pathlib import Path

from videonsa.models.methods import METHODS

PAGE = (Path(__file__).parents[3] / "docs/methods.md").read_text("utf-8")


def test_the_table_has_the_methods_of_the_registry_in_its_words():
    table = PAGE.split("\n## ")[0]
    rows = dict(re.findall(r"^\| `([a-z_0-9]+)` \| (.*?) \| ", table, re.MULTILINE))
    assert rows == {name: entry.what for name, entry in METHODS.items()}


def test_every_method_has_one_section():
    titles = re.findall(r"^## ([a-z_0-9]+)$", PAGE, re.MULTILINE)
    assert sorted(titles) == sorted(METHODS)
