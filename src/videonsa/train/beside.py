"""The files beside the weights that answering needs; every model that a run saves has them."""

import json
from collections.abc import Mapping
from pathlib import Path

from videonsa.disk import write_atomic
from videonsa.errors import ModelError
from videonsa.parsing import one_line, read_json_object, read_regular
from videonsa.planning.defaults import (
    IMAGE_SETTINGS_FILE,
    SETTINGS_FILE,
    image_settings,
    settings_of_sampling,
)
from videonsa.video.sampling import SamplingSpec

_KEPT = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
    *("preprocessor_config.json", "processor_config.json", "generation_config.json"),
)
"""Copied unchanged where the model has them: tokenizer, chat format, pixels, generation."""

Files = Mapping[str, bytes]
"""Contents by file name."""


def files_beside(folder: Path, *, sampling: SamplingSpec) -> Files:
    """The files that go with the weights.

    Args:
        folder: of the model that a run begins with, or of the checkpoint that it resumes from.
        sampling: how the trained model samples a video unless told otherwise.

    Raises:
        ModelError: a file cannot be read.
    """
    try:
        kept = {name: read_regular(folder / name) for name in _KEPT if (folder / name).is_file()}
    except OSError as error:
        raise ModelError(
            f"the files of {folder} cannot be read ({one_line(error)}): mend that first"
        ) from error
    path = folder / SETTINGS_FILE
    stated = read_json_object(path, error=ModelError) if path.exists() else {}
    made = {SETTINGS_FILE: settings_of_sampling(sampling, stated)}
    if sampling.image_pixels is not None and IMAGE_SETTINGS_FILE not in kept:
        made[IMAGE_SETTINGS_FILE] = image_settings(sampling.image_pixels)
    return kept | {name: (json.dumps(x, indent=2) + "\n").encode() for name, x in made.items()}


def write_beside(files: Files, folder: Path) -> None:
    """Write them into the folder of a model, over what the Trainer wrote there.

    Raises:
        OSError: the disk is full.
    """
    for name, content in files.items():
        write_atomic(folder / name, content)
