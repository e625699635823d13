"""`load_tokenizer`: the one way to a tokenizer. Its files are data: nothing in them is run."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from videonsa.errors import ModelError
from videonsa.models.checkpoints.hub import model_folder
from videonsa.models.checkpoints.validation import PAD_IDS
from videonsa.parsing import one_line, read_json_object, read_regular

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL_TOKENS = MappingProxyType(
    {
        "<|im_start|>": None,
        "<|im_end|>": None,
        "<|vision_start|>": "vision_start_token_id",
        "<|vision_end|>": "vision_end_token_id",
        "<|image_pad|>": "image_token_id",
        "<|video_pad|>": "video_token_id",
    }
)
"""The tokens of the chat format, and the fields of a config that state the ids of some."""

_WHOLE = "tokenizer.json"
_PARTS = ("vocab.json", "merges.txt")
_FILES = (
    *(_WHOLE, *_PARTS, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "chat_template.jinja",
)
_PROBE = "Is it 12 o'clock?\n"
_REMEDY = "want the tokenizer files that belong to the model; download them again"

_ATOM = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{\d)")
_REPEATS = re.compile(r"(?<![*+?}])(?:[*+]|\{\d*,?\d*\})")
_MOST_REPEATS = 3
"""In one alternative of a pattern; those of Qwen2.5 have two."""
_MOST_CHARACTERS = 4096
_MOST_IDS = 2**22
"""Of a vocabulary; the largest published ones have 2**18."""


def load_tokenizer(model: str | Path, *, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, with the special tokens that its config states.

    Args:
        model: a folder, or an id of the Hugging Face hub.
        revision: of an id.

    Raises:
        ModelError: files that are missing or not readable, that want code of their own to be run
            or patterns that may take forever, or special tokens that are missing, that share an
            id, or whose ids are not those of the config.
    """
    folder = model_folder(model, revision=revision)
    _check_files(folder)
    tokenizer = _read(folder)
    config = folder / "config.json"
    fields = read_json_object(config, error=ModelError, remedy=_REMEDY) if config.exists() else {}
    _check_ids(folder, tokenizer, fields)
    return tokenizer


def _check_files(folder: Path) -> None:
    """Refuse, before a library reads them, files that are missing, no files, or dangerous."""
    if not (folder / _WHOLE).exists() and not all((folder / name).exists() for name in _PARTS):
        raise ModelError(
            f"{folder} has no tokenizer ({_WHOLE}, or {' and '.join(_PARTS)}): {_REMEDY}"
        )
    for name in _FILES:
        path = folder / name
        if not path.exists():
            continue
        if path.suffix != ".json":
            _check_regular(path)
            continue
        content = read_json_object(path, error=ModelError, remedy=_REMEDY)
        if outside := [x for x in _stated_ids(name, content) if not 0 <= x < _MOST_IDS]:
            raise ModelError(
                f"{path} states the id {str(outside[0])[:40]}, want 0 to {_MOST_IDS - 1}: {_REMEDY}"
            )
        if name == _WHOLE:
            _check_patterns(path, content)
            _check_prefix(path, content.get("model"))
        if name == "tokenizer_config.json":
            _check_settings(path, content)


def _stated_ids(name: str, content: Mapping[str, Any]) -> list[int]:
    """The ids in a file of a tokenizer; the library makes room up to the largest."""
    ids: list[Any] = []
    if name in ("vocab.json", "added_tokens.json"):
        ids += content.values()
    if isinstance(model := content.get("model"), dict) and isinstance(model.get("vocab"), dict):
        ids += model["vocab"].values()
    if isinstance(added := content.get("added_tokens"), list):
        ids += [token.get("id") for token in added if isinstance(token, dict)]
    if isinstance(known := content.get("added_tokens_decoder"), dict):
        ids += [int(number) for number in known if re.fullmatch("[0-9]{1,4000}", number)]
    return [number for number in ids if isinstance(number, int)]


def _check_regular(path: Path) -> None:
    try:
        read_regular(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({one_line(error)}): {_REMEDY}") from error


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    if settings.get("auto_map") is not None:
        raise ModelError(
            f"{path} has auto_map, which wants code of the checkpoint to be run, and none is: want "
            "a tokenizer without code of its own, such as Qwen2.5's"
        )
    longest = settings.get("model_max_length", 1)
    if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest > 0:
        raise ModelError(
            f"{path}: model_max_length is {str(longest)[:40]!r}, want a positive number; {_REMEDY}"
        )


def _check_patterns(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse regular expressions that may take time beyond all bounds on a short text.

    A group that repeats may do so, as in "(a+)+b"; so may many repeats beside each other. The
    patterns of tokenizers split text into words and have neither.
    """
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        for pattern in _patterns(content.get(part)):
            plain = _ATOM.sub("a", pattern)
            repeats = max(len(_REPEATS.findall(one)) for one in plain.split("|"))
            if (
                len(pattern) > _MOST_CHARACTERS
                or _REPEATED_GROUP.search(plain)
                or repeats > _MOST_REPEATS
            ):
                raise ModelError(
                    f"{path}: the regular expression {pattern[:40]!r} of its {part} may take "
                    "forever: want one without repeated groups, and with at most "
                    f"{_MOST_REPEATS} repeats in each alternative"
                )


def _check_prefix(path: Path, model: Any) -> None:
    """Refuse what makes the tokenizers library panic, with a page of its own, on merges without."""
    prefix = model.get("continuing_subword_prefix") if isinstance(model, dict) else None
    if prefix:
        raise ModelError(
            f"{path}: continuing_subword_prefix is {str(prefix)[:40]!r}, want none: {_REMEDY}"
        )


def _patterns(value: Any) -> Iterator[str]:
    """Every regular expression in a part of tokenizer.json."""
    if isinstance(value, dict):
        if isinstance(found := value.get("Regex"), str):
            yield found
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _patterns(item)


def _read(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer, Qwen2_5_VLConfig

    try:
        # With a config at hand transformers reads none, and looks for no code that one names.
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, config=Qwen2_5_VLConfig(), trust_remote_code=False, local_files_only=True
        )
        ids = tokenizer.encode(_PROBE, add_special_tokens=False, split_special_tokens=True)
        text = tokenizer.decode(ids, skip_special_tokens=True)
    except BaseException as error:  # what panics in Rust is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise ModelError(
            f"the tokenizer of {folder} cannot be read ({type(error).__name__}: "
            f"{one_line(error, 120)}): {_REMEDY}"
        ) from error
    if text != _PROBE:
        raise ModelError(f"the tokenizer of {folder} makes {text[:40]!r} of {_PROBE!r}: {_REMEDY}")
    return tokenizer


def _check_ids(
    folder: Path, tokenizer: "PreTrainedTokenizerBase", config: Mapping[str, Any]
) -> None:
    vocabulary = tokenizer.get_vocab()
    lacking = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if lacking:
        raise ModelError(f"the tokenizer of {folder} has no {', '.join(lacking)}: {_REMEDY}")
    ids = {token: vocabulary[token] for token in SPECIAL_TOKENS}
    if len(set(ids.values())) < len(ids):
        raise ModelError(f"the tokenizer of {folder} gives one id to several of {ids}: {_REMEDY}")
    text = config.get("text_config")
    size = (text if isinstance(text, dict) else config).get("vocab_size")
    last = max(vocabulary.values())
    if isinstance(size, int) and last >= size:
        raise ModelError(
            f"the tokenizer of {folder} has ids up to {last}, but config.json states vocab_size "
            f"{size}: {_REMEDY}"
        )
    stated = PAD_IDS | dict(config) if config else {}
    for token, field in SPECIAL_TOKENS.items():
        if field in stated and stated[field] != ids[token]:
            raise ModelError(
                f"the tokenizer of {folder} has {token} as {ids[token]}, but config.json wants "
                f"{field} {str(stated[field])[:40]}: {_REMEDY}"
            )
