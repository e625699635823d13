"""What generation_config.json beside weights asks for, and what of it is not applied.

The ids that end an answer are applied, and `stated_options`. The rest is said, never passed over.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from videonsa.errors import ModelError
from videonsa.models._hf import GenerationConfig
from videonsa.parsing import one_line, read_json_object

FILE = "generation_config.json"
_REMEDY = "download it again"

_OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "max_new_tokens": "max_new_tokens",
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "repetition_penalty": "repetition_penalty",
        "stop_strings": "stop",
    }
)
"""Fields that are applied, and what the engine calls them."""
_NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "encoder_repetition_penalty": (1,),
        "length_penalty": (1,),
        "typical_p": (1,),
        "min_p": (0,),
        "epsilon_cutoff": (0,),
        "eta_cutoff": (0,),
        "num_beams": (1,),
        "num_beam_groups": (1,),
        "num_return_sequences": (1,),
        "no_repeat_ngram_size": (0,),
        "min_length": (0,),
        "diversity_penalty": (0,),
        "max_length": (20,),
    }
)
"""Values that change nothing, beside None, false and empty ones."""
_OF_DRAWING = frozenset({"typical_p", "min_p", "epsilon_cutoff", "eta_cutoff"})
"""Without `do_sample` they change nothing."""
_NO_WISHES = frozenset(
    {
        *("do_sample", *_OPTIONS),
        *("transformers_version", "use_cache", "eos_token_id", "bos_token_id", "pad_token_id"),
        *("decoder_start_token_id", "output_attentions", "output_hidden_states", "output_scores"),
        *("output_logits", "return_dict_in_generate"),
    }
)
_MOST_SHOWN = 60


def read_generation(folder: Path) -> tuple[GenerationConfig | None, tuple[str, ...]]:
    """The generation config of a model's folder, and what of it the engine does not apply.

    Args:
        folder: of config and weights.

    Returns:
        None where there is no such file; and a note, if there is something to say.

    Raises:
        ModelError: a file that cannot be used.
    """
    path = folder / FILE
    if not path.exists():
        return None, ()
    fields = read_json_object(path, error=ModelError, remedy=_REMEDY)
    ids = fields.get("eos_token_id")
    if ids is not None and not all(type(i) is int for i in (ids if type(ids) is list else [ids])):
        raise ModelError(f"{path}: eos_token_id {ids!r}: want an id or several; {_REMEDY}")
    known = vars(GenerationConfig())
    fields = {name: value for name, value in fields.items() if name in known}
    try:
        config = GenerationConfig(**fields)
    except Exception as error:  # whatever its checks stumble over
        raise ModelError(f"{path} cannot be used ({one_line(error)}): {_REMEDY}") from error
    wishes = ", ".join(_wishes(fields))
    if not wishes:
        return config, ()
    return config, (f"{FILE} asks for what is not applied: {wishes}",)


def stated_options(config: GenerationConfig | None) -> dict[str, Any]:
    """What a generation config states of how tokens are chosen, by the engine's names.

    `do_sample` is in the temperature: 0 where nothing is drawn. Values are as they stand.
    """
    stated = {ours: getattr(config, theirs, None) for theirs, ours in _OPTIONS.items()}
    if not getattr(config, "do_sample", None):
        stated["temperature"] = 0.0
    elif stated["temperature"] is None:
        stated["temperature"] = 1.0
    return {name: value for name, value in stated.items() if value is not None}


def _wishes(fields: Mapping[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        if name in _NO_WISHES or name.startswith("_") or not value:
            continue
        if value in _NEUTRAL.get(name, ()) and not isinstance(value, bool):
            continue
        if name not in _OF_DRAWING or fields.get("do_sample"):
            yield f"{name} {value!r}"[:_MOST_SHOWN]
