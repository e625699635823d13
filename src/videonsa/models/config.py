"""`VideoNSAConfig`: Qwen2.5-VL's config and the choices of the hybrid attention."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from videonsa.errors import ModelError, UsageError
from videonsa.models._hf import Qwen2_5_VLConfig, snapshot_download
from videonsa.models.checkpoints.auto_map import AUTO_MAP, write_module
from videonsa.models.checkpoints.stored import INDEX, SINGLE, has_gates, stored_names
from videonsa.models.methods import DENSE, SPARSE, AttentionMethod, named_method, parse_method
from videonsa.models.methods.registry import attending_class, read_method
from videonsa.ops.padded import NUM_KV_HEADS, NUM_QUERY_HEADS
from videonsa.ops.spec import NSASpec
from videonsa.ops.stated_spec import spec_from_dict, spec_to_dict

QWEN = "qwen2_5_vl"
ATTENTIONS = (SPARSE, DENSE)
GATE_INITS = ("half", "released")
OUR_FIELDS = ("nsa", "attention", "gates", "gate_init")


def fields_for_weights(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The fields of ours that Qwen2.5-VL's config lacks, for weights of these names.

    Weights without gates are Qwen2.5-VL's and attend densely. Weights with gates are the released
    VideoNSA's; their config may state the selected blocks (`block_counts`) and the window.
    """
    if not has_gates(names):
        return {"attention": DENSE}
    text = config.get("text_config") or config
    stated = {
        ours: text[theirs]
        for ours, theirs in (("num_selected_blocks", "block_counts"), ("window_size",) * 2)
        if text.get(theirs) is not None
    }
    try:
        spec = NSASpec.released(**stated)
    except (TypeError, ValueError) as error:
        raise ModelError(f"the config of the released VideoNSA cannot be used: {error}") from error
    return {"attention": SPARSE, "nsa": spec_to_dict(spec)}


def stated_by(method: AttentionMethod | str | None) -> tuple[str | None, NSASpec | None]:
    """The fields `attention` and `nsa` that a method asks for; None leaves one as it is.

    Raises:
        UsageError: a text of none.
    """
    if method is None:
        return None, None
    if not isinstance(method, AttentionMethod):
        gated = attending_class(read_method(method)).uses_gates
        return SPARSE if gated else DENSE, None  # the spec is the config's, changed by `attend_by`
    if not isinstance(getattr(method, "name", None), str):
        raise UsageError(f"a method of class {type(method).__name__} has no name: give it one")
    fields = method.config_fields()
    return fields["attention"], fields.get("nsa")


def check_heads(config: "VideoNSAConfig", where: str) -> None:
    """Refuse the released preset for another number of heads than it exists for.

    Raises:
        ModelError: says what to do.
    """
    text, wanted = config.text_config, (NUM_QUERY_HEADS, NUM_KV_HEADS)
    heads = (text.num_attention_heads, text.num_key_value_heads)
    padded = config.method.uses_gates and config.nsa_spec.head_map == "padded"
    if padded and heads != wanted:
        raise ModelError(
            f"{where}: the released preset exists for {wanted[0]} query and {wanted[1]} KV heads, "
            f"and this model has {heads[0]} and {heads[1]}: use --method dense, or state how "
            "it was trained in config.json (model_type 'videonsa' and its nsa; in Python nsa_spec=)"
        )


class VideoNSAConfig(Qwen2_5_VLConfig):
    """Config of `VideoNSAForConditionalGeneration`.

    Beside the fields of `Qwen2_5_VLConfig`:

    * `nsa`: an `NSASpec`, or its fields as a dict; None is the paper's. Kept as a dict and
      complete, so a saved config states every choice. Read it through `nsa_spec`.
    * `attention`: how calls attend that say nothing else: "nsa", or "dense" as in Qwen2.5-VL.
    * `gates`: whether the layers have the gates of the branches, which "nsa" needs; None where it
      is what `attention` says.
    * `gate_init`: how fresh gates start, "half" (every gate 0.5) or "released" (normal weights).

    `from_pretrained` on a Qwen2.5-VL config looks at the names of the weights beside it: without
    gates attention is "dense", with gates they are the released VideoNSA's and get its preset.
    """

    model_type = "videonsa"

    nsa: dict[str, Any] | NSASpec | None = None
    attention: str = SPARSE
    gates: bool | None = None
    gate_init: Literal["half", "released"] = "half"

    def __post_init__(self, **kwargs: Any) -> None:
        """Complete and check the fields of this class, then those of Qwen2.5-VL."""
        for name, choices in (("attention", ATTENTIONS), ("gate_init", GATE_INITS)):
            if getattr(self, name) not in choices:
                raise ModelError(f"{name}={getattr(self, name)!r}: want one of {choices}")
        spec = self.nsa if isinstance(self.nsa, NSASpec) else spec_from_dict(self.nsa or {})
        self.nsa = spec_to_dict(spec)
        needs_gates = self.method.uses_gates
        self.gates = needs_gates if self.gates is None else self.gates
        if needs_gates and not self.gates:
            raise ModelError(f"attention={self.attention!r} with gates=False: it needs the gates")
        super().__post_init__(**kwargs)

    @property
    def nsa_spec(self) -> NSASpec:
        """The attention's spec, built from `nsa`."""
        return self.nsa if isinstance(self.nsa, NSASpec) else spec_from_dict(self.nsa or {})

    @property
    def method(self) -> AttentionMethod:
        """How calls attend that say nothing else."""
        return named_method(self.attention, self.nsa_spec)

    def method_of(self, asked: AttentionMethod | str) -> AttentionMethod:
        """A method as it is, or by its text, "nsa" with this config's spec.

        Raises:
            UsageError: what is neither.
        """
        if not isinstance(asked, AttentionMethod):
            asked = parse_method(asked, spec=self.nsa_spec)
        return asked.of_depth(self.text_config.num_hidden_layers)

    def attend_by(self, asked: AttentionMethod | str | None) -> AttentionMethod:
        """The method asked for, its NSA stated here from now on; None is the config's own.

        Raises:
            UsageError: as `method_of`.
        """
        if asked is None:
            return self.method
        method = self.method_of(asked)
        if (spec := method.config_fields().get("nsa")) is not None:
            self.nsa = spec_to_dict(spec)
        return method

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; a Qwen2.5-VL config gets the fields that suit its weights."""
        found, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if found.get("model_type") == QWEN:
            names = _names_beside(pretrained_model_name_or_path, **kwargs)
            found = {name: value for name, value in found.items() if name != "model_type"}
            found |= fields_for_weights(found, names) if names else {}
        return found, rest

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As in transformers, with what lets its Auto classes find this package."""
        self.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)
        write_module(Path(save_directory))

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: saved configs name this package, and no copy of its code."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; our fields among the keywords are checked like those of the dict."""
        ours = {name: kwargs.pop(name) for name in OUR_FIELDS if name in kwargs}
        return super().from_dict(config_dict | ours, **kwargs)


def _names_beside(model: str | Path, *, subfolder: str = "", **kwargs: Any) -> frozenset[str]:
    """Names of the weights beside a config in a folder or on the hub; empty if there are none."""
    if Path(model).is_file():
        return stored_names(Path(model).parent)
    folder = Path(model)
    if not folder.is_dir():
        hub = {
            name: kwargs[name]
            for name in ("cache_dir", "local_files_only", "revision", "token")
            if kwargs.get(name) is not None
        }
        for file in (INDEX, SINGLE):
            wanted = str(Path(subfolder, file))
            folder = Path(snapshot_download(str(model), allow_patterns=[wanted], **hub))
            if (folder / wanted).is_file():
                break
    return stored_names(folder / subfolder)
