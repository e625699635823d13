"""Frozen recipes: every number that changes a prompt or an answer, for each benchmark."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from videonsa.errors import UsageError
from videonsa.evals.field.benchmarks import BENCHMARKS, tasks_of
from videonsa.parsing import one_line, read_regular, typed

FOLDER = Path(__file__).parent / "recipes"
PIXELS_OF_A_TOKEN = 28 * 28
"""Of a frame, in Qwen2.5-VL: 14 pixels a patch, 2 by 2 of them merged."""
Scoring = Literal["paper", "lmms-0.7.3"]
PREFERRED = ("paper", "qwen2.5-vl")
"""Taken where no recipe is named: the first that has the benchmark."""
_MOST_BYTES = 2**18
_MOST_SHOWN = 60
_WORDS = ("summary", "sources", "notes")
"""Fields that change nothing in a run."""
_FIXED = ("name", "version", "benchmark", "scoring", *_WORDS)
"""Fields that say which recipe it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How one benchmark is asked, and which scoring the published number has."""

    name: str
    version: int
    benchmark: str
    summary: str
    sources: tuple[str, ...]
    scoring: Scoring
    """Of the published number that the recipe is for; a run has both."""
    fps: float
    """Frames a second, up to `max_frames`; then they are spread evenly."""
    min_frames: int = 4
    max_frames: int
    min_pixels: int
    """Of a frame; smaller ones are enlarged."""
    max_pixels: int
    max_video_tokens: int | None = None
    """Of a video, after two frames are merged."""
    max_new_tokens: int
    temperature: float
    """0 takes the likeliest token."""
    system: str
    """The system message."""
    pre_prompt: str | None = None
    """Before the question; None: as the task of lmms-eval says."""
    post_prompt: str | None = None
    replaced: tuple[tuple[str, str], ...] = ()
    """Texts of the prompt, and what stands in their place."""
    notes: tuple[str, ...] = ()
    """What has to be known to compare with the published number."""

    def __post_init__(self) -> None:
        """Refuse what no run can use: UsageError."""
        if self.benchmark not in BENCHMARKS:
            raise UsageError(f"benchmark {self.benchmark!r}: want one of {', '.join(BENCHMARKS)}")
        for name in ("version", "min_frames", "max_frames", "min_pixels", "max_pixels"):
            self._at_least_one(name)
        self._at_least_one("max_new_tokens")
        if self.max_video_tokens is not None:
            self._at_least_one("max_video_tokens")
        if not 0 < self.fps < math.inf:
            raise UsageError(f"fps={self.fps!r}: want a number above 0")
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature={self.temperature!r}: want a number from 0 to 100")
        for least, most in (("min_pixels", "max_pixels"), ("min_frames", "max_frames")):
            low, high = getattr(self, least), getattr(self, most)
            if low > high:
                raise UsageError(f"{least}={low} exceeds {most}={high}: state both")
        if any(not before for before, _ in self.replaced):
            raise UsageError("replaced: an empty text came: want one that stands in the prompt")

    def _at_least_one(self, name: str) -> None:
        value = getattr(self, name)
        if value < 1:
            raise UsageError(f"{name}={value!r}: want a whole number of at least 1")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Of lmms-eval."""
        return tasks_of(self.benchmark)

    @property
    def tokens_a_frame(self) -> int:
        """At most, as papers count: before two frames are merged."""
        return self.max_pixels // PIXELS_OF_A_TOKEN

    @property
    def title(self) -> str:
        """Name, version and hash: `paper v1 (0123456789abcdef)`."""
        return f"{self.name} v{self.version} ({self.digest})"

    @property
    def digest(self) -> str:
        """A hash of all that changes a run: 16 hexadecimal digits."""
        values = {name: value for name, value in asdict(self).items() if name not in _WORDS}
        text = json.dumps(values, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def sampling_values(self) -> dict[str, Any]:
        """Fields of `SamplingSpec` that it states."""
        names = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels")
        values = {name: getattr(self, name) for name in names}
        return values | {"max_tokens": self.max_video_tokens}

    def generation_values(self) -> dict[str, Any]:
        """Keywords of lmms-eval's generation that it states."""
        drawn = self.temperature > 0
        return {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "do_sample": drawn,
        }

    def prompt_text(self, text: str) -> str:
        """A prompt of the task, with what is replaced in it.

        Raises:
            UsageError: a text that is to be replaced is not there, which would change nothing.
        """
        for before, after in self.replaced:
            if before not in text:
                raise UsageError(
                    f"recipe {self.name}: {before!r} does not stand in the prompt of "
                    f"{self.benchmark}: want lmms-eval 0.7.3, whose prompt the recipe changes"
                )
            text = text.replace(before, after)
        return text


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def packaged_recipes() -> list[Recipe]:
    """Every packaged recipe for every benchmark that it has."""
    files = {name: _read(FOLDER / f"{name}.yaml") for name in recipe_names()}
    return [
        _recipe_of(name, content, benchmark)
        for name, content in files.items()
        for benchmark in content["benchmarks"]
    ]


def read_recipe(benchmark: str, *, name: str | None = None) -> Recipe:
    """The recipe for a benchmark.

    Args:
        benchmark: of `BENCHMARKS`.
        name: of a packaged recipe, or a YAML file; None: the first of `PREFERRED` that has the
            benchmark.

    Raises:
        UsageError: no such benchmark or recipe, or one that cannot be used.
    """
    if benchmark not in BENCHMARKS:
        raise UsageError(
            f"benchmark {benchmark!r}: want one of {', '.join(BENCHMARKS)}"
            + _nearest(benchmark, BENCHMARKS)
        )
    if name is None:
        has = (one for one in PREFERRED if benchmark in _read(FOLDER / f"{one}.yaml")["benchmarks"])
        name = next(has)
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in recipe_names():
            raise UsageError(
                f"recipe {name!r}: want one of {', '.join(recipe_names())}, or a .yaml file"
                + _nearest(name, recipe_names())
            )
        path = FOLDER / f"{name}.yaml"
    return _recipe_of(path.stem, _read(path), benchmark)


def _recipe_of(name: str, content: Mapping[str, Any], benchmark: str) -> Recipe:
    if benchmark not in content["benchmarks"]:
        raise UsageError(
            f"recipe {name} has no {benchmark}: want one of "
            f"{', '.join(content['benchmarks'])}, or another recipe"
        )
    shared, own = dict(content["settings"]), dict(content["benchmarks"][benchmark])
    notes = [*shared.pop("notes", ()), *own.pop("notes", ())]
    about = {key: value for key, value in content.items() if key not in ("settings", "benchmarks")}
    stated = about | shared | own | {"name": name, "benchmark": benchmark, "notes": notes}
    return _made(stated, what=f"recipe {name}, {benchmark}")


def changed_recipe(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """A recipe with other values.

    Args:
        recipe: to begin with.
        settings: each `field=value`, the value as in YAML.

    Raises:
        UsageError: an unknown field, or a value of another type or outside its domain.
    """
    known = [one for one in _names() if one not in _FIXED]
    stated = {name: _plain(getattr(recipe, name)) for name in _names()}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting[:_MOST_SHOWN]}: want field=value")
        if field not in known:
            raise UsageError(
                f"--set {field[:_MOST_SHOWN]}: want one of {', '.join(known)}"
                + _nearest(field, known)
            )
        stated[field] = _yaml(text, what=f"--set {setting[:_MOST_SHOWN]}")
    return _made(stated, what="--set")


def differences(recipe: Recipe, published: Recipe) -> tuple[str, ...]:
    """What a recipe states that the one it was made from does not, a few words each."""
    pairs = (
        (name, getattr(recipe, name), getattr(published, name))
        for name in _names()
        if name not in _WORDS
    )
    return tuple(
        f"{name} {_shown(now)} (recipe: {_shown(was)})" for name, now, was in pairs if now != was
    )


def stated_recipe(values: Mapping[str, Any]) -> Recipe:
    """The recipe that a run recorded, as `asdict` gave it.

    Raises:
        UsageError: it is none.
    """
    return _made(values, what="the recipe of the run")


def _made(values: Mapping[str, Any], *, what: str) -> Recipe:
    for name, value in values.items():
        if name not in _names():
            raise UsageError(
                f"{what}: {str(name)[:_MOST_SHOWN]} is no setting: want one of "
                f"{', '.join(_names())}" + _nearest(str(name), _names())
            )
        if name == "scoring" and value not in get_args(Scoring):
            raise UsageError(f"{what}: scoring {value!r}: want {' or '.join(get_args(Scoring))}")
    if missing := _required() - values.keys():
        raise UsageError(f"{what}: {min(missing)} is not stated: want every number that counts")
    try:
        made: Recipe = typed(Recipe, values)
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from error
    except (ValueError, TypeError) as error:
        name = _of_wrong_type(values)
        raise UsageError(f"{what}: {name}: {one_line(error)}") from error
    return made


def _of_wrong_type(values: Mapping[str, Any]) -> str:
    """The field whose value is of another type: the one that makes a good recipe bad."""
    good = {name: _EXAMPLES.get(name) for name in _names()}
    for name, value in values.items():
        try:
            typed(Recipe, good | {name: value})
        except UsageError:
            continue
        except (ValueError, TypeError):
            return name
    return "a setting"


_EXAMPLES: Mapping[str, Any] = {
    **{"name": "a", "version": 1, "benchmark": BENCHMARKS[0], "summary": "a", "sources": []},
    **{"scoring": "paper", "fps": 1, "min_frames": 1, "max_frames": 1, "min_pixels": 1},
    **{"max_pixels": 1, "max_new_tokens": 1, "temperature": 0, "system": "a", "replaced": []},
    "notes": [],
}
"""A good recipe; what it lacks may be None."""


def _names() -> list[str]:
    return [one.name for one in fields(Recipe)]


def _required() -> set[str]:
    made = set(_names())
    optional = {"min_frames", "max_video_tokens", "pre_prompt", "post_prompt", "replaced", "notes"}
    return made - optional


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return "none" if value is None else repr(value) if isinstance(value, str) else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_regular(path, most_bytes=_MOST_BYTES).decode()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"recipe {path} cannot be read ({one_line(error)}): check the path"
        ) from error
    content = _yaml(text, what=f"recipe {path}")
    parts = ("settings", "benchmarks")
    if not isinstance(content, dict) or not all(isinstance(content.get(x), dict) for x in parts):
        raise UsageError(f"recipe {path}: want 'settings:' and 'benchmarks:' with values below")
    for benchmark, own in content["benchmarks"].items():
        if not isinstance(own, dict):
            raise UsageError(f"recipe {path}: {benchmark}: want settings, or {{}} for none")
    return content


def _yaml(text: str, *, what: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{what}: not YAML ({one_line(error)})") from error


def _nearest(text: str, known: Iterable[str]) -> str:
    near = get_close_matches(text, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
