"""A build that kills itself: `python killed_build.py TREE OUT probing|judging N`.

N results are written whole and the next by half, or N rows are judged; then SIGKILL.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from videonsa.data.build_report import Tally
from videonsa.data.probe_journal import ProbeJournal


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_journal(after: int) -> None:
    whole = ProbeJournal._append
    count = 0

    def append(journal: ProbeJournal, line: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count <= after + 1:  # the header is a line of its own
            whole(journal, line)
            return
        journal._file.write(str(line).encode()[:40])
        journal._file.flush()
        die()

    ProbeJournal._append = append


def die_in_tally(after: int) -> None:
    whole = Tally.keep
    count = 0

    def keep(tally: Tally, *args: Any) -> None:
        nonlocal count
        count += 1
        if count > after:
            die()
        whole(tally, *args)

    Tally.keep = keep


if __name__ == "__main__":
    tree, out, where, after = sys.argv[1:]
    {"probing": die_in_journal, "judging": die_in_tally}[where](int(after))
    from tree_build import build_tree

    build_tree(Path(tree), Path(out))
