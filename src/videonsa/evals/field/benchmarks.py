"""The benchmarks, and their tasks in lmms-eval."""

MVBENCH = tuple(
    f"mvbench_{name}"
    for name in (
        *("action_antonym", "action_count", "action_localization", "action_prediction"),
        *("action_sequence", "character_order", "counterfactual_inference"),
        *("egocentric_navigation", "episodic_reasoning", "fine_grained_action"),
        *("fine_grained_pose", "moving_attribute", "moving_count", "moving_direction"),
        *("object_existence", "object_interaction", "object_shuffle", "scene_transition"),
        *("state_change", "unexpected_action"),
    )
)
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
