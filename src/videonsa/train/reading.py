"""Recipes from YAML, packaged or a file of the user; `--set` on top; mistakes in one line."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from reprlib import repr as short_repr
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

from videonsa.errors import UsageError
from videonsa.parsing import one_line, read_regular
from videonsa.train.settings import SECTIONS, Recipe

FOLDER = Path(__file__).parent / "recipes"
_EXTENDS = "extends"
_MOST_BYTES = 2**18
"""Of a recipe. YAML is slow to parse, and a usual recipe is a thousandth of this."""

_SHOWN = 100
"""Characters shown of a setting that is not YAML."""

Sections = dict[str, dict[str, Any]]


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_recipe(name_or_path: str, *, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: one of `recipe_names`, or a YAML file. A file may extend another recipe, whose
            values then hold wherever the file states none; a file that it extends lies beside it,
            or where its path says.
        settings: each `section.key=value`; they override the recipe.

    Raises:
        UsageError: no such recipe, an unknown key, or a value of another type.
    """
    name, sections = _read(name_or_path, seen=())
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: want section.key=value")
        section, _, field = key.partition(".")
        sections.setdefault(section, {})[field] = _yaml(text, what=f"--set {setting[:_SHOWN]}")
    return recipe_of(name, sections)


class Stated(NamedTuple):
    """A recipe as a run recorded it."""

    recipe: Recipe
    sections: Sections
    """The settings that the file states; later versions of the package may have more."""


def read_stated_recipe(path: Path, *, remedy: str) -> Stated:
    """Read the recipe that a run recorded.

    Raises:
        UsageError: the file is missing or is not a recipe; `remedy` ends the message.
    """
    try:
        sections = _sections(path)
        if missing := SECTIONS.keys() - sections.keys():
            raise UsageError(f"it states no {min(missing)}")
        return Stated(recipe_of(path.stem, sections), sections)
    except UsageError as error:
        raise UsageError(f"{path} cannot be used ({error}): {remedy}") from error


def recipe_of(name: str, sections: Mapping[str, Any]) -> Recipe:
    """The recipe of these sections; what they do not state has its default.

    Raises:
        UsageError: as for `read_recipe`.
    """
    for section, values in sections.items():
        if section not in SECTIONS:
            raise _unknown(_shown(section).strip("'"), SECTIONS)
        if not isinstance(values, Mapping):
            raise UsageError(f"{section}: {_shown(values)}: want keys with values below it")
    made = {
        section: kind(**_fields(section, kind, sections.get(section, {})))
        for section, kind in SECTIONS.items()
    }
    return Recipe(name=name, **made)


def recipe_to_yaml(recipe: Recipe) -> str:
    """The whole recipe, every default written out, as a file that `read_recipe` takes."""
    sections = {name: _plain(asdict(getattr(recipe, name))) for name in SECTIONS}
    return yaml.safe_dump(sections, sort_keys=False)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: list(value) if isinstance(value, tuple) else value for k, value in values.items()}


def _read(name_or_path: str, *, seen: tuple[str, ...]) -> tuple[str, Sections]:
    path = Path(name_or_path)
    if not _is_file(path):
        path = FOLDER / f"{name_or_path}.yaml"
        if name_or_path not in recipe_names():
            near = _nearest(name_or_path, recipe_names())
            raise UsageError(
                f"recipe {name_or_path!r}: want one of {', '.join(recipe_names())}, or a .yaml "
                f"file{near}"
            )
    if str(path) in seen:
        raise UsageError(f"recipe {path} extends itself: want a chain with an end")
    content = _sections(path)
    base = content.pop(_EXTENDS, None)
    sections: Sections = {}
    if base is not None:
        beside = path.parent / str(base)
        extended = str(beside) if _is_file(beside) and beside.is_file() else str(base)
        sections = _read(extended, seen=(*seen, str(path)))[1]
    for section, values in content.items():
        own = values if isinstance(values, dict) else {"": values}
        sections[section] = sections.get(section, {}) | own
    return path.stem, sections


def _is_file(path: Path) -> bool:
    """A file by its name, not a packaged recipe."""
    return path.suffix in (".yaml", ".yml")


def _sections(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        text = read_regular(path, most_bytes=_MOST_BYTES).decode()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"recipe {path} cannot be read ({one_line(error)}): check the path"
        ) from error
    content = _yaml(text, what=str(path)) or {}
    if not isinstance(content, dict):
        raise UsageError(f"recipe {path}: want sections with keys, such as 'optimizer:'")
    return content


def _yaml(text: str, *, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except RecursionError as error:
        raise UsageError(f"{what}: not YAML that can be read (nested too deeply)") from error
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        # All but YAMLError come from values: numbers of too many digits, dates that do not exist.
        raise UsageError(f"{what}: not YAML ({one_line(error)})") from error


def _fields(section: str, kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            name = _shown(key).strip("'")
            raise _unknown(f"{section}.{name}", [f"{section}.{hint}" for hint in hints])
    return {key: _checked(f"{section}.{key}", value, hints[key]) for key, value in values.items()}


def _unknown(key: str, known: Iterable[str]) -> UsageError:
    return UsageError(
        f"{key} is no setting of a recipe: want one of {', '.join(known)}" + (_nearest(key, known))
    )


def _nearest(key: str, known: Iterable[str]) -> str:
    near = get_close_matches(key, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _shown(value: Any) -> str:
    """A short text for a value of any size."""
    try:
        return short_repr(value)
    except ValueError:
        return "a number of too many digits"


def _checked(name: str, value: Any, wanted: Any) -> Any:
    """The value, converted to the type of its setting."""
    kinds = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
    for kind in kinds:
        fits, converted = _converted(name, value, kind)
        if fits:
            return converted
    raise UsageError(f"{name}={_shown(value)}: want {' or '.join(map(_described, kinds))}")


def _converted(name: str, value: Any, kind: Any) -> tuple[bool, Any]:
    if get_origin(kind) is Literal:
        return value in get_args(kind), value
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        fits = isinstance(value, list | tuple) and (inner[-1] is ... or len(value) == len(inner))
        return fits, tuple(_checked(name, item, inner[0]) for item in value) if fits else None
    if kind is Any:
        return True, value
    if get_origin(kind) is Mapping:
        return _named_values(name, value, get_args(kind)[1])
    if kind is float:
        return _as_float(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    return isinstance(value, kind), value


def _named_values(name: str, value: Any, kind: Any) -> tuple[bool, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False, value
    return True, {key: _checked(f"{name}.{key}", inner, kind) for key, inner in value.items()}


def _as_float(value: Any) -> tuple[bool, Any]:
    """A float, from text too: YAML 1.1 reads 1e-6 as text, and only 1.0e-6 as a number."""
    if isinstance(value, bool):
        return False, value
    try:
        return True, float(value)
    except (OverflowError, TypeError, ValueError):
        return False, value


def _described(kind: Any) -> str:
    if kind is type(None):
        return "null"
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"a list of {_described(get_args(kind)[0])}"
    if get_origin(kind) is Mapping:
        return "names with values, such as {min_lr_rate: 0.1}"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
