"""Where a model is: the embedded one, a folder, or an id of the Hugging Face hub."""

import os
from pathlib import Path

from videonsa.errors import ModelError
from videonsa.models.checkpoints.hub import is_hub_id

EMBEDDED = "embedded"
TRAINED = "model"
"""Where a training run puts the model that it trained, in its folder."""
ASSETS = Path(__file__).parents[1] / "assets"


def locate_model(model: str | Path) -> str:
    """The folder or hub id that `model` stands for.

    The folder of a training run stands for the model that it trained.

    Raises:
        ModelError: a path that is no folder, a run without a trained model, or the embedded model
            where it is not packaged.

    """
    name = str(model)
    if name == EMBEDDED:
        folder = ASSETS / EMBEDDED
        if not (folder / "config.json").is_file():
            raise ModelError(
                "the embedded model is not in this build: reinstall videonsa, "
                "or name another model with --model"
            )
        return str(folder)
    path = os.path.expanduser(name)
    if name and os.path.isdir(path):  # pathlib raises for names that are too long
        return str(trained_model(Path(path)))
    if not is_hub_id(name):
        raise ModelError(
            f"model {name!r} is no folder and no Hugging Face id (OWNER/NAME): "
            "check the path, or use 'embedded'"
        )
    return name


def notes_on_place(model: str | Path, where: str) -> tuple[str, ...]:
    """What to say of where `locate_model` found a model, if it is not where it was looked for."""
    if model == EMBEDDED or Path(where) != Path(model).expanduser() / TRAINED:
        return ()
    return (f"{model} is the folder of a training run: its {TRAINED}/ is taken",)


def trained_model(folder: Path) -> Path:
    """The model in the folder of a training run; any other folder itself.

    Raises:
        ModelError: a run that is not at its end; names its checkpoints.

    """
    if (folder / "config.json").exists() or not (folder / "run.json").is_file():
        return folder
    if (folder / TRAINED / "config.json").is_file():
        return folder / TRAINED
    steps = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    found = [f"checkpoint-{step}" for step in sorted(filter(str.isdecimal, steps), key=int)]
    if not found and not (folder / "log.jsonl").exists():
        return folder  # a run of an evaluation
    raise ModelError(
        f"{folder} is the folder of a training run that has no {TRAINED}/ yet: want one of its "
        f"checkpoints ({', '.join(found[-4:]) or 'it has none'}), or the run at its end"
    )
