"""Whether measurements may stand side by side."""

from videonsa.bench.comparable import comparable


def test_numbers_of_another_day_or_commit_are_comparable_and_those_of_other_code_not():
    one = {"device": "a", "sources_sha256": "1", "date": "2026-01-01", "commit": "c"}
    assert comparable(one, one | {"date": "2026-01-02", "commit": "d"})
    assert not comparable(one, one | {"sources_sha256": "2"})
