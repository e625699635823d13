"""Where a model is: the embedded one, a folder, or an id of the Hugging Face hub."""

from pathlib import Path
from typing import Any

from videonsa.errors import ModelError
from videonsa.parsing import read_json_object

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
    if name and Path(name).expanduser().is_dir():
        return str(trained_model(Path(name).expanduser()))
    if not _is_hub_id(name):
        raise ModelError(
            f"model {name!r} is no folder and no Hugging Face id (OWNER/NAME): "
            "check the path, or use 'embedded'"
        )
    return name


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


def _is_hub_id(name: str) -> bool:
    owner, slash, rest = name.partition("/")
    plain = all(char.isalnum() or char in "-_./" for char in name)
    return bool(slash and owner.strip(".") and rest and "/" not in rest and plain)


def read_json(model: str, file_name: str) -> dict[str, Any] | None:
    """A JSON file of a model (folder or hub id as `locate_model` gives it); None where absent.

    Raises:
        ModelError: a hub that cannot be reached, an id it does not know, or a file that is no JSON
            object.

    """
    path = Path(model) / file_name if Path(model).is_dir() else _download(model, file_name)
    if path is None or not path.is_file():
        return None
    return read_json_object(path, error=ModelError, remedy="download it again")


def _download(model: str, file_name: str) -> Path | None:
    """Fetch one file of a hub model through the hub's cache; None where the model lacks it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, file_name))
    except LocalEntryNotFoundError as error:
        raise _unreachable(model) from error
    except EntryNotFoundError:
        return None
    except Exception as error:
        raise _unreachable(model) from error


def _unreachable(model: str) -> ModelError:
    return ModelError(
        f"model {model!r} is neither in the local cache nor reachable on the Hugging Face hub: "
        "check the id and the network, or download it and pass its folder"
    )
