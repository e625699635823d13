"""The folder of a model: one on disk, or what the cache of the Hugging Face hub has of an id."""

import os
import re
from pathlib import Path

from videonsa.errors import ModelError, UsageError

FILES = ("*.json", "*.txt", "*.jinja")
"""Config, tokenizer, chat template, processor."""
WEIGHTS = ("*.safetensors",)

_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
_READABLE = re.compile(r"qwen2[._]5[-_]?vl|videonsa")
_OTHER_FAMILY = re.compile(
    r"qwen[\d.]*(?:[-_]?(?:vl|omni|audio))?|llava|intern-?vl|video-?llama|minicpm|smolvlm|llama"
    r"|gemma|molmo|phi-?\d|glm|mistral|pixtral|deepseek|kimi"
)
"""By the id alone; asked only where the config, which knows, cannot be had."""


def is_hub_id(name: str) -> bool:
    """Whether a name has the form OWNER/NAME."""
    return _ID.fullmatch(name) is not None


def model_folder(
    model: str | Path,
    *,
    revision: str | None = None,
    patterns: tuple[str, ...] = FILES,
    local_only: bool = False,
) -> Path:
    """The folder of a model; of a hub id, what the hub's cache has after a look at the hub.

    Args:
        model: a folder, or an id of the Hugging Face hub.
        revision: branch, tag or commit of an id; None is its main branch.
        patterns: of the files that are wanted; an id's are fetched where the cache lacks them.
        local_only: take what the cache has.

    Raises:
        ModelError: neither folder nor id, or an id that is neither cached nor reachable.
        UsageError: a revision of a folder, or an empty one.
    """
    if revision is not None and not revision.strip():
        raise UsageError("revision '': want a branch, tag or commit of a hub id, or none")
    name = str(model)
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        if revision is not None:
            raise UsageError(
                f"revision {revision!r} of the folder {path}: only ids of the Hugging Face hub "
                "have revisions; leave it out"
            )
        return Path(path)
    if os.path.exists(path) or not is_hub_id(name):
        raise ModelError(
            f"model {name!r} is no folder and no Hugging Face id (OWNER/NAME): check the path"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(patterns),
                local_files_only=local_only,
            )
        )
    except Exception as error:  # the hub client lets through whatever its transport raises
        raise _unreachable(name, revision) from error


def is_cached(model: str, file: str) -> bool:
    """Whether the hub's cache has a file of an id's main branch."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, file), str)


def _unreachable(name: str, revision: str | None) -> ModelError:
    own = name.rpartition("/")[2].lower()
    family = None if _READABLE.search(own) else _OTHER_FAMILY.search(own)
    if family:
        return ModelError(
            f"model {name!r} is of another family ({family[0]}, by its id): want Qwen2.5-VL or "
            "VideoNSA, or the folder of one"
        )
    of = "" if revision is None else f" at revision {revision!r}"
    return ModelError(
        f"model {name!r}{of} is neither in the local cache nor reachable on the Hugging Face hub: "
        "check the id and the network, or download it and pass its folder"
    )
