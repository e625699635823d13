"""The benchmarks, and their tasks in lmms-eval."""

from videonsa.evals.field.fixtures.other_benchmarks import MVBENCH_FOLDERS

MVBENCH = tuple(f"mvbench_{subtask}" for subtask in MVBENCH_FOLDERS)
BENCHMARKS = (
    *("longvideobench_val_v", "mlvu_dev", "mlvu_test", "timescope", "longtimescope", "tomato"),
    *("vsibench", "lsdbench", "videoevalpro", "videomme", "videomme_v2", "lvbench", "mvbench"),
)
"""By the names of lmms-eval: tasks, but for mvbench, which is a group."""


def tasks_of(benchmark: str) -> tuple[str, ...]:
    """The tasks of a benchmark; most have one of their own name."""
    return MVBENCH if benchmark == "mvbench" else (benchmark,)


def benchmark_of(task: str) -> str:
    """The benchmark that a task belongs to."""
    return "mvbench" if task in MVBENCH else task
