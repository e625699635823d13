"""From logits to token ids: what is asked for, what the checkpoint states, and the `Sampler`."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from videonsa.errors import ModelError, UsageError
from videonsa.models._hf import GenerationConfig
from videonsa.models.checkpoints.generation_config import FILE, stated_options
from videonsa.planning.budget import check_new_tokens
from videonsa.planning.plan import NEW_TOKENS

if TYPE_CHECKING:
    from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration

NOT_FINITE = -1
"""In place of a token id where logits are not finite: they are read together, in one wait."""
_SEEDS = 2**63  # what a torch generator takes
_MOST_SHOWN = 60  # characters of a value
_SCALES = (1e-6, 1e6)
"""Logits divided by less than the first leave float32; by more than the second, all are alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationOptions:
    """How tokens are to be chosen. None: as the checkpoint's generation_config says, else neutral.

    Raises:
        UsageError: a value outside its domain.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    """0 takes the likeliest token; above, tokens are drawn."""
    top_p: float | None = None
    """Draw from the fewest likeliest tokens that hold this much of the probability; 1 is all."""
    top_k: int | None = None
    """Draw from so many of the likeliest tokens; 0 is all."""
    repetition_penalty: float | None = None
    """Above 1, tokens of the prompt and of the answer so far become less likely; 1 is none."""
    stop: Sequence[str] | None = None
    """The answer ends before the first of these texts, kept as a tuple; or of a single one."""
    seed: int | None = None
    """Makes drawing repeatable."""

    def __post_init__(self) -> None:
        """Refuse values outside the domain."""
        object.__setattr__(self, "stop", _texts(self.stop))
        _check(self._given())

    def _given(self) -> dict[str, Any]:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def resolve(self, stated: GenerationConfig | None) -> "GenerationSettings":
        """What to do, given what the checkpoint states. Drawing without a seed is given one.

        Raises:
            ModelError: the checkpoint states a value outside its domain, and none was passed.
        """
        try:
            settings = GenerationSettings(**(stated_options(stated) | self._given()))
        except UsageError as error:
            raise ModelError(f"{FILE}: {error}; correct the file, or pass a value") from error
        if not settings.draws:
            return replace(settings, top_p=1.0, top_k=0, seed=None)
        return settings if settings.seed is not None else replace(settings, seed=_any_seed())


class AnswerOptions(TypedDict, total=False):
    """The fields of `GenerationOptions`, as keywords."""

    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    repetition_penalty: float | None
    stop: Sequence[str] | None
    seed: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationSettings:
    """How tokens are chosen, fully stated; the fields are those of `GenerationOptions`.

    The defaults are neutral: the likeliest token of the logits as they are.

    Raises:
        UsageError: a value outside its domain.
    """

    max_new_tokens: int = NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    """None where nothing is drawn, or where drawing is not to be repeatable."""

    def __post_init__(self) -> None:
        """Refuse values outside the domain."""
        object.__setattr__(self, "stop", _texts(self.stop))
        _check({name: v for name, v in asdict(self).items() if name != "seed" or v is not None})
        for name in ("temperature", "top_p", "repetition_penalty"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn, instead of the likeliest taken."""
        return self.temperature > 0


def _any_seed() -> int:
    return secrets.randbits(32)  # which every reader of JSON takes


def _texts(value: Any) -> Any:
    """A single text or a list as a tuple; all else as it came."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_scale(value: Any) -> bool:
    return _is_number(value) and _SCALES[0] <= value <= _SCALES[1]


def _is_texts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)


_DOMAINS: Mapping[str, tuple[Callable[[Any], bool], str]] = MappingProxyType(
    {
        "temperature": (
            lambda value: _is_scale(value) or (_is_number(value) and value == 0),
            "a number of at least 0: 0 for the likeliest token, or {:g} to {:g}".format(*_SCALES),
        ),
        "top_p": (
            lambda value: _is_number(value) and 0 < value <= 1,
            "a number above 0 and at most 1",
        ),
        "top_k": (
            lambda value: type(value) is int and value >= 0,
            "an int of at least 0: 0 for all tokens",
        ),
        "repetition_penalty": (
            _is_scale,
            "a number above 0: 1 for no penalty, or {:g} to {:g}".format(*_SCALES),
        ),
        "stop": (_is_texts, "a tuple of texts, none of them empty"),
        "seed": (
            lambda value: type(value) is int and 0 <= value < _SEEDS,
            "an int of at least 0 and below 2**63",
        ),
    }
)


def _check(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name == "max_new_tokens":
            check_new_tokens(value)
            continue
        holds, wanted = _DOMAINS[name]
        if not holds(value):
            raise UsageError(f"{name}={repr(value)[:_MOST_SHOWN]}: want {wanted}")


class Sampler:
    """From float32 logits `[B, V]` to token ids `[B]`, by fixed settings, on the device.

    Nothing waits for the host, no shape depends on data, and state is updated in place, so calls
    can be captured in a CUDA graph: capture after `graph.register_generator_state(generator)`,
    and `restart` before each answer. The settings are constants of what was captured.

    Args:
        settings: temperature, top_p, top_k and repetition_penalty are applied; `seed` begins.
        batch_size: B.
        vocab_size: V.
        device: of the logits.
        never: ids that are never chosen.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        *,
        batch_size: int,
        vocab_size: int,
        device: torch.device | str,
        never: Sequence[int] = (),
    ) -> None:
        self._settings = settings
        self._seen: Tensor | None = None
        if settings.repetition_penalty != 1:
            # The last column takes what is masked.
            shape = (batch_size, vocab_size + 1)
            self._seen = torch.zeros(shape, dtype=torch.bool, device=device)
        self.generator = torch.Generator(device) if settings.draws else None
        """What draws; None where nothing is drawn."""
        self._never = torch.tensor(list(never), dtype=torch.int64, device=device)
        self.restart(settings.seed)

    @classmethod
    def of(
        cls,
        model: "VideoNSAForConditionalGeneration",
        settings: GenerationSettings,
        *,
        batch_size: int,
    ) -> "Sampler":
        """For the logits of a model. Placeholders of images and videos are no words: never chosen.

        Their place in an answer would wait for features of frames that nobody passed.
        """
        config = model.config
        return cls(
            settings,
            batch_size=batch_size,
            vocab_size=config.text_config.vocab_size,
            device=model.device,
            never=(config.image_token_id, config.video_token_id),
        )

    def restart(self, seed: int | None) -> None:
        """Begin another answer: nothing was seen, and drawing starts at `seed` (None: anywhere)."""
        if self._seen is not None:
            self._seen.zero_()
        if self.generator is not None:
            self.generator.manual_seed(_any_seed() if seed is None else seed)

    def see(self, ids: Tensor, mask: Tensor | None = None) -> None:
        """Count tokens as seen, for the repetition penalty.

        Args:
            ids: int64 `[B, L]`: of prompts, images and videos included; `[1, L]` is for all B.
            mask: `[B, L]`, zero or False where padded; None is nowhere.
        """
        if self._seen is None:
            return
        seen = self._seen
        if mask is not None:
            ids = ids.masked_fill(mask == 0, seen.shape[1] - 1)
        seen.scatter_(1, ids.expand(len(seen), -1), True)

    def __call__(self, logits: Tensor) -> Tensor:
        """Ids int64 `[B]` by float32 logits `[B, V]`; `NOT_FINITE` where one is not finite."""
        settings = self._settings
        finite = logits.isfinite().all(-1)
        if self._seen is not None:
            logits = penalised(logits, self._seen[:, :-1], penalty=settings.repetition_penalty)
        # A row that is not finite would give no probabilities.
        logits = torch.where(finite[:, None], logits, 0.0).index_fill_(-1, self._never, -torch.inf)
        if self.generator is None:
            ids = logits.argmax(-1)
        else:
            ids = self._draw(probabilities(logits, settings))
        if self._seen is not None:
            self._seen.scatter_(1, ids[:, None], True)
        return torch.where(finite, ids, NOT_FINITE)

    def _draw(self, kept: Tensor) -> Tensor:
        """Draw by probabilities `[B, V]`: the first of as many clocks to ring.

        An exponential clock of rate p rings before the others with probability p. Unlike
        `torch.multinomial` it checks nothing, which would wait for the device.
        """
        noise = torch.empty_like(kept).exponential_(generator=self.generator)
        return (kept / noise.clamp_min_(torch.finfo(noise.dtype).tiny)).argmax(-1)


def penalised(logits: Tensor, seen: Tensor, *, penalty: float) -> Tensor:
    """Logits `[B, V]` with those of tokens seen, bool `[B, V]`, made less likely by `penalty`."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def probabilities(logits: Tensor, settings: GenerationSettings) -> Tensor:
    """What tokens are drawn by: float32 `[B, V]`, the sum of each row is 1.

    Args:
        logits: float32 `[B, V]`, finite, or -inf for what is not to be drawn.
        settings: of which temperature, top_k and top_p are applied, in this order.
    """
    logits = logits / settings.temperature
    if 0 < settings.top_k < logits.shape[-1]:
        least = logits.topk(settings.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if settings.top_p < 1:
        ascending, ids = logits.sort(dim=-1)
        # A token is dropped if it and all that are less likely hold no more than what may be lost.
        dropped = ascending.softmax(-1).cumsum(-1) <= 1 - settings.top_p
        dropped[:, -1] = False
        logits = logits.masked_fill(dropped.scatter(-1, ids, dropped), -torch.inf)
    return logits.softmax(-1)
