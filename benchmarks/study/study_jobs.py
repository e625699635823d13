"""The study as jobs: manifests, training runs, and what the trained models are asked."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.study.answering import answered_all
from benchmarks.study.parallel_jobs import Ended, Job
from benchmarks.study.study_design import FRAME_TOKENS, STILL, Design, Run, Stage, data_folder
from videonsa.data.build_report import REPORT_JSON, REPORT_MD
from videonsa.data.manifest import MANIFEST
from videonsa.errors import UsageError
from videonsa.train.reading import read_recipe

STOPPING_SECONDS = 30.0
"""A command stops this long before the deadline: it has to start, and to save."""
LEAST_TRAINING = 50.0
"""Seconds below which a run does not start: imports and captures take much of it."""
LEAST_ANSWERING = 45.0


def check_settings(design: Design, out: Path) -> None:
    """Read the recipe of every run, with its settings.

    Raises:
        UsageError: a setting names an unknown stage, is not in the recipe, or lets an arm attend to
            more keys than another.
    """
    for stage in design.stages:
        keys: dict[int, str] = {}
        for run in design.runs_of(stage):
            recipe = read_recipe(stage.recipe, settings=design.settings_of(run, out))
            attended = recipe.attention.method().attended_keys(FRAME_TOKENS)
            if attended is not None:
                keys.setdefault(attended, run.arm)
        if len(keys) > 1:
            told = ", ".join(f"{arm} to {attended}" for attended, arm in keys.items())
            raise UsageError(
                f"--set: in stage {stage.name} vision tokens attend {told} keys: want equally many "
                "in every arm (ARMS in study_design.py)"
            )


def data_jobs(design: Design, out: Path) -> list[Job]:
    """The manifests of all stages; no two sources share a video."""
    jobs, place = [], 0
    for stage in design.stages:
        jobs.append(_building(design, stage, out, place=place))
        place += len(stage.sources)
    return jobs


def _building(design: Design, stage: Stage, out: Path, *, place: int) -> Job:
    runs = design.runs_of(stage)
    folder = data_folder(out, stage.name)
    names = [source.name(place + index) for index, source in enumerate(stage.sources)]
    most = str(max(source.frames for source in stage.sources))
    frames = ["--min-frames", "0", "--max-frames", most]
    options = ["--model", "embedded", *frames, "--out", str(folder)]
    return Job(
        name=f"data-{stage.name}",
        command=lambda _: ["videonsa", "data", "build", *names, *options],
        log=_log(out, f"data-{stage.name}"),
        is_done=lambda: (
            all(design.is_trained(run, out) for run in runs) or has_all_videos(folder, stage)
        ),
        share=0.0,
    )


def has_all_videos(folder: Path, stage: Stage) -> bool:
    """Whether a stage's manifest is there.

    Raises:
        UsageError: it leaves out some of the stage's videos.
    """
    if not (folder / MANIFEST).exists():
        return False
    wanted = sum(source.count for source in stage.sources)
    kept = json.loads((folder / REPORT_JSON).read_bytes())["kept"]
    if kept != wanted:
        raise UsageError(
            f"{folder} has {kept:,} videos: want all {wanted:,} of stage {stage.name}; "
            f"{REPORT_MD} there says what was dropped: delete the folder to build it again"
        )
    return True


def training_jobs(design: Design, out: Path, *, trainers: int) -> list[Job]:
    """All runs, each after its data and the run that it starts from; `trainers` share a GPU."""
    return [_training(design, run, out, share=1 / trainers) for run in design.all_runs()]


def _training(design: Design, run: Run, out: Path, *, share: float) -> Job:
    def command(seconds: float) -> list[str]:
        settings = design.settings_of(run, out)
        if seconds < float("inf"):
            settings.append(f"run.seconds={max(seconds - STOPPING_SECONDS, 1.0):.1f}")
        chosen = [word for setting in settings for word in ("--set", setting)]
        recipe = design.stage_of(run).recipe
        return ["videonsa", "train", recipe, *chosen, "--out", str(run.folder(out))]

    before = design.before(run)
    return Job(
        name=run.name,
        command=command,
        log=_log(out, run.name),
        is_done=lambda: design.is_trained(run, out),
        after=(f"data-{run.stage}", *([] if before is None else [before.name])),
        share=share,
        least_seconds=LEAST_TRAINING,
    )


def answering_jobs(design: Design, out: Path, *, answerers: int) -> list[Job]:
    """The questions to every last model, and to those of the stage of stills.

    Args:
        design: of the study.
        out: its folder.
        answerers: processes that share the videos of a model, and a GPU.
    """
    videos = [f"{length}:{count}" for length, count in design.videos]
    gates = f"{design.gate_length}:{design.gate_videos}"
    jobs = [
        _answering(design, run, out, [f"{STILL}:{design.stills}"], "0/1", share=1 / answerers)
        for run in design.runs_of(design.stages[0])
    ]
    for run in design.last_runs():
        for part in range(answerers):
            words = [*videos] if run.arm != "nsa" else [*videos, f"gates:{gates}"]
            where = f"{part}/{answerers}"
            jobs.append(_answering(design, run, out, words, where, share=1 / answerers))
    return jobs


def _answering(
    design: Design, run: Run, out: Path, videos: Sequence[str], part: str, *, share: float
) -> Job:
    folder = run.answers(out) / part.replace("/", "-of-")
    asked = [
        *("--model", str(run.model(out)), "--out", str(folder), "--dtype", design.dtype),
        *("--part", part, "--videos", *videos),
    ]

    def command(seconds: float) -> list[str]:
        left = [] if seconds == float("inf") else ["--seconds", f"{seconds - 10:.1f}"]
        return ["benchmarks.study.answering", *asked, *left]

    def has_no_model() -> bool:
        """Only the models that began with it are here: there is nothing to ask."""
        return design.is_trained(run, out) and not run.model(out).is_dir()

    return Job(
        name=f"answers-{run.name}-{part}",
        command=command,
        log=_log(out, f"answers-{run.name}-{part.replace('/', '-of-')}"),
        is_done=lambda: has_no_model() or answered_all(videos, part, folder),
        after=(run.name,),
        share=share,
        least_seconds=LEAST_ANSWERING,
    )


def check_ended(ended: Mapping[str, Ended], out: Path) -> bool:
    """Whether all jobs are done.

    Raises:
        UsageError: some failed.
    """
    failed = [name for name, how in ended.items() if how == "failed"]
    if failed:
        raise UsageError(
            f"failed: {', '.join(failed)}: look into {out / 'logs'}, then start the same part again"
        )
    return all(how == "done" for how in ended.values())


def _log(out: Path, name: str) -> Path:
    return out / "logs" / f"{name}.log"
