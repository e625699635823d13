"""LoRA adapters in peft's format: found, checked against their base, and merged into it.

Nothing is applied that was not asked for: an adapter in a folder of its own stands for base and
adapter together; beside the weights of a whole checkpoint it is refused, for nothing says whether
they hold it already.
"""

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from videonsa.errors import ModelError, UsageError
from videonsa.models.checkpoints.stored import (
    INDEX,
    SINGLE,
    StoredTensor,
    has_gates,
    listed,
    parameter_name,
    read_header,
    read_json,
)
from videonsa.models.methods import DENSE, SPARSE
from videonsa.ops.spec import NSASpec
from videonsa.ops.stated_spec import spec_from_dict
from videonsa.parsing import read_json_object

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_LORA = re.compile(r"(.+)\.lora_(A|B)\.weight")
_MOST_RANK, _MOST_FACTOR = 2**16, 1e6
_PLAIN = re.compile(r"[\w.]+")
"""A key of `rank_pattern` and `alpha_pattern`, which peft matches as a regular expression."""
_PASSED = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
_NOT_OF_THE_RESULT = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"),
        *("revision", "task_type", "lora_dropout", "megatron_core", "qalora_group_size"),
        # The tensors themselves say which modules they are of.
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("modules_to_save", *_PASSED),
    }
)
_NEUTRAL = MappingProxyType({"bias": ("none",), "init_lora_weights": (True, False, "gaussian")})
"""Where others than None, false and empty say that nothing is to be done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """An adapter on disk; its config is checked, its tensors are not read."""

    folder: Path
    base: str
    """Folder or hub id of what it was trained on."""
    options: Mapping[str, Any]
    """Of peft's `LoraConfig`."""
    tensors: Mapping[str, StoredTensor]
    """By the names of the base's parameters, and those of its modules with `.lora_A.weight`..."""

    @property
    def has_gates(self) -> bool:
        """Whether it brings gates of its own."""
        return has_gates(self.tensors)

    def asked_of_base(
        self,
        *,
        attention: str | None,
        fresh_gates: bool,
        nsa_spec: NSASpec | None,
    ) -> dict[str, Any]:
        """How its base is read: as was asked for, else as the config beside the adapter says."""
        stated = self.stated_attention()
        brings_gates = self.has_gates and attention != DENSE
        return {
            "attention": attention or (SPARSE if brings_gates else stated.get("attention")),
            "fresh_gates": fresh_gates or brings_gates,
            "nsa_spec": nsa_spec or stated.get("nsa_spec"),
        }

    def describe(self) -> str:
        """In words, for the notes."""
        return f"LoRA adapter {self.folder} (rank {self.options['r']}) merged into {self.base}"

    def notes(
        self,
        of_base: tuple[str, ...],
        *,
        spec: NSASpec | None,
        base: Iterable[str],
        without_gates_by: str = DENSE,
    ) -> tuple[str, ...]:
        """What to say of base and adapter.

        Args:
            of_base: what is to be said of the base alone.
            spec: of the attention; None where the model has no gates.
            base: the names of the base's tensors.
            without_gates_by: name of the method that attends then.
        """
        notes = (self.describe(), *of_base)
        if not self.has_gates:
            return notes
        if spec is None:
            asked = f"{without_gates_by} attention was asked for"
            return (*notes, f"{asked}: the gates of the adapter are left out")
        if has_gates(base):
            return notes
        # The gates are the adapter's, not fresh.
        unstated = (
            "the adapter brings gates and does not say of which NSA: taken is that of the base's "
            f"config or the default (block_size {spec.block_size!r}, num_selected_blocks "
            f"{spec.num_selected_blocks}, window_size {spec.window_size})"
        )
        return notes[:1] if self.stated_attention() else (notes[0], unstated)

    def stated_attention(self) -> dict[str, Any]:
        """`attention` and `nsa_spec` by the config beside the adapter, if one of ours is there.

        Raises:
            ModelError: it is there, and cannot be used.
        """
        if not (self.folder / "config.json").exists():
            return {}
        fields = read_json(self.folder / "config.json", "the config of the adapted model")
        if fields.get("model_type") != "videonsa":
            return {}
        spec = fields.get("nsa")
        if spec is not None and not isinstance(spec, dict):
            raise ModelError(f"{self.folder / 'config.json'}: nsa is no object; copy it again")
        return {"attention": fields.get("attention"), "nsa_spec": spec_from_dict(spec or {})}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no weights to apply it to.

    Raises:
        ModelError: it holds both.
    """
    if not (folder / CONFIG).exists():
        return False
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        raise ModelError(
            f"{folder} holds a whole checkpoint and a LoRA adapter ({CONFIG}): nothing says "
            "whether the weights have it in them; move the adapter to a folder of its own, and "
            "pass the one that is meant"
        )
    return True


def read_adapter(folder: Path, *, base: str | Path | None = None) -> Adapter | None:
    """The adapter in a folder; None where it holds none.

    Args:
        folder: of an adapter, or of a whole checkpoint.
        base: in place of the one that the adapter states.

    Raises:
        ModelError: an adapter beside whole weights, one that cannot be read, or that is no LoRA,
            or peft is not installed.
        UsageError: a base without an adapter.
    """
    if not is_adapter(folder):
        if base is not None:
            raise UsageError(f"base {str(base)!r}: {folder} holds no adapter; leave it out")
        return None
    if importlib.util.find_spec("peft") is None:
        raise ModelError("a LoRA adapter needs peft, which is not installed: pip install peft")
    config = read_json_object(folder / CONFIG, error=ModelError, remedy="copy the adapter again")
    wanted = str(base or config.get("base_model_name_or_path") or "")
    if not wanted:
        raise ModelError(f"{folder / CONFIG} names no base: pass it with base (--base)")
    if os.path.isdir(wanted) and is_adapter(Path(wanted)):
        raise ModelError(f"{wanted}, the base of {folder}, is an adapter itself: merge it first")
    _check_config(folder / CONFIG, config)
    if not (folder / TENSORS).is_file():
        raise ModelError(f"{folder} has no {TENSORS}: want the adapter in safetensors format")
    return Adapter(
        folder=folder,
        base=wanted,
        options={name: config[name] for name in _PASSED if name in config},
        tensors=_tensors(folder / TENSORS),
    )


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{path} is of peft_type {kind!r}: want a LoRA adapter; merge others")
    other = [
        f"{name} {value!r}"[:80]
        for name, value in config.items()
        if name not in _NOT_OF_THE_RESULT and value and value not in _NEUTRAL.get(name, ())
    ]
    if other:
        raise ModelError(
            f"{path} states {listed(other)}, which is not supported: merge the adapter into its "
            "base with peft, then pass that"
        )
    problems = [f"r {config.get('r')!r}"] if not _is_rank(config.get("r")) else []
    if not _is_factor(config.get("lora_alpha")):
        problems.append(f"lora_alpha {config.get('lora_alpha')!r}"[:80])
    for name, is_right in (("rank_pattern", _is_rank), ("alpha_pattern", _is_factor)):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict) or not all(
            _PLAIN.fullmatch(key) and is_right(value) for key, value in pattern.items()
        ):
            problems.append(f"{name} {pattern!r}"[:80])
    if problems:
        raise ModelError(f"{path} cannot be used ({', '.join(problems)}): copy the adapter again")


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MOST_RANK


def _is_factor(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < _MOST_FACTOR  # no NaN


def _tensors(path: Path) -> dict[str, StoredTensor]:
    """By the names of the model, whichever layout the adapter has."""
    found: dict[str, StoredTensor] = {}
    for tensor in read_header(path):
        name = parameter_name(tensor.name.removeprefix(_PREFIX))
        if name in found or not tensor.name.startswith(_PREFIX):
            raise ModelError(
                f"{path} holds {tensor.name!r}{' twice' if name in found else ''}: want each "
                f"tensor once, named {_PREFIX}...; copy the adapter again"
            )
        found[name] = tensor
    return found


def refuse_applied(model: nn.Module, source: str | Path) -> None:
    """Refuse a model to which transformers has applied an adapter by itself: ModelError."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"{source} holds a LoRA adapter ({CONFIG}), which transformers applies without a word: "
            "want weights alone; `videonsa.load` takes adapters"
        )


def merge_adapter(model: nn.Module, adapter: Adapter, *, dense: bool) -> None:
    """Merge an adapter into its base, in place.

    Args:
        model: the base, with gates that are fresh where the adapter brings them.
        adapter: its names, shapes and values are checked first.
        dense: the model has no gates: those of the adapter are left out.

    Raises:
        ModelError: an adapter that does not fit the base, or that is not finite.
    """
    kept = {
        name: tensor
        for name, tensor in adapter.tensors.items()
        if not (dense and has_gates([name]))
    }
    factors = {name: match for name in kept if (match := _LORA.fullmatch(name))}
    modules = sorted({match[1] for match in factors.values()})
    whole = {name for name in kept if name not in factors}
    _check_fit(model, adapter, kept, modules, whole)
    values = dict(_values(adapter, kept))
    with torch.no_grad():
        for name in whole:
            model.get_parameter(name).copy_(values[name])
    if modules:
        _merge_factors(model, adapter, modules, {name: values[name] for name in factors})


def _check_fit(
    model: nn.Module,
    adapter: Adapter,
    kept: Mapping[str, StoredTensor],
    modules: list[str],
    whole: set[str],
) -> None:
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    linear = {name for name, part in model.named_modules() if type(part) is nn.Linear}
    expected = {name: shapes[name] for name in whole if name in shapes}
    for module in modules:
        if module in linear:
            rows, columns = shapes[f"{module}.weight"]
            rank = _rank_of(module, adapter.options)
            expected[f"{module}.lora_A.weight"] = (rank, columns)
            expected[f"{module}.lora_B.weight"] = (rows, rank)
    reshaped = [
        f"{name} is {list(kept[name].shape)}, wanted {list(shape)}"
        for name, shape in expected.items()
        if name in kept and kept[name].shape != shape
    ]
    problems = [
        f"{title} {listed(names)}"
        for title, names in (
            ("missing:", sorted(expected.keys() - kept.keys())),
            ("unexpected:", sorted(kept.keys() - expected.keys())),
            ("of another shape:", reshaped),
        )
        if names
    ]
    if problems or not kept:
        raise ModelError(
            f"the adapter {adapter.folder} does not fit {adapter.base}: "
            f"{'; '.join(problems) or 'it is empty'}: pass the base that it was trained on (--base)"
        )


def _rank_of(module: str, options: Mapping[str, Any]) -> int:
    patterns: Mapping[str, int] = options.get("rank_pattern") or {}
    found = (rank for key, rank in patterns.items() if re.search(rf"(^|\.){key}$", module))
    return next(found, int(options["r"]))


def _values(adapter: Adapter, kept: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    with safe_open(adapter.folder / TENSORS, framework="pt") as file:
        for name, stored in kept.items():
            value = file.get_tensor(stored.name)
            if not value.is_floating_point() or not value.isfinite().all():
                raise ModelError(
                    f"{adapter.folder / TENSORS}: {stored.name} holds NaN, infinity or no floats: "
                    "want another checkpoint of the run, or copy the adapter again"
                )
            yield name, value


def _merge_factors(
    model: nn.Module, adapter: Adapter, modules: list[str], values: Mapping[str, Tensor]
) -> None:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = LoraConfig(target_modules=modules, **adapter.options)
    # On the meta device until the values come: what is not there is seen below.
    wrapped = get_peft_model(model, config, low_cpu_mem_usage=True)
    named = {_PREFIX + name: value for name, value in values.items()}
    set_peft_model_state_dict(wrapped, named, low_cpu_mem_usage=True)
    lacking = [name for name, value in wrapped.named_parameters() if value.is_meta]
    if lacking:
        raise ModelError(f"peft leaves parts of {adapter.folder} without values: {listed(lacking)}")
    wrapped.merge_and_unload()
