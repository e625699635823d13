"""Methods as text: names, options, what stands behind a +, and what is refused in one line."""

import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import pytest

import videonsa
from videonsa.errors import UsageError
from videonsa.models.methods import METHODS, NSA, AttentionMethod, Dense, ReleasedNSA, parse_method
from videonsa.models.methods import registry as registry_module
from videonsa.models.methods.options import options_of, read_value, value_text
from videonsa.models.methods.registry import MethodEntry
from videonsa.ops.spec import NSASpec


@dataclass(frozen=True)
class Fewer(AttentionMethod):
    """Stands for a method that compresses tokens; it has an option of each kind."""

    name = "fewer"
    ratio: float = 0.5
    layers: tuple[int, ...] = (2,)
    merges: bool = True
    kind: Literal["cls", "mean"] = "mean"
    most: int | None = None
    file: str = ""
    attention: AttentionMethod = field(default_factory=Dense)

    def __post_init__(self):
        if not 0 < self.ratio <= 1:
            raise UsageError(f"ratio={self.ratio}: want more than 0, at most 1")

    def attend(self, layer, hidden, q, k, v, step):
        return self.attention.attend(layer, hidden, q, k, v, step)


@pytest.fixture
def fewer(monkeypatch):
    entry = MethodEntry(where=f"{__name__}:Fewer", what="fewer tokens", paper="none", code="")
    monkeypatch.setattr(registry_module, "METHODS", {**METHODS, "fewer": entry})


def test_every_name_gives_its_class_with_the_published_settings():
    for name, entry in METHODS.items():
        method = parse_method(name)
        assert method.name == name
        assert isinstance(method, entry.load())
        assert parse_method(name).parameters() == method.parameters()


def test_every_default_is_read_back_from_its_text():
    for name, entry in METHODS.items():
        for option in options_of(entry.load()):
            text = value_text(option.default)
            assert read_value(option.kind, text) == option.default, (name, option)


def test_options_are_read_by_the_types_of_the_fields(fewer):
    text = "fewer:ratio=1e+0,layers=2/5/9,merges=false,kind=cls,most=7,file=a+b/c.json"
    found = parse_method(text)
    assert found == Fewer(1.0, (2, 5, 9), merges=False, kind="cls", most=7, file="a+b/c.json")
    assert type(found.ratio) is float
    assert parse_method("fewer:layers=,most=none") == Fewer(layers=())


def test_what_stands_behind_a_plus_attends(fewer):
    method = parse_method("fewer:ratio=0.25+nsa:block_size=frame,branches=selected/window")
    assert method.attention == NSA(NSASpec(block_size="frame", branches=("selected", "window")))
    assert method.full_name == "fewer+nsa"
    assert method.parameters()["attention"]["block_size"] == "frame"
    assert parse_method("fewer+dense").full_name == "fewer"
    assert "attention" not in parse_method("fewer+dense").parameters()


def test_nsa_starts_from_the_models_own():
    released = NSASpec.released()
    method = parse_method("nsa:num_selected_blocks=16", spec=released)
    assert method == ReleasedNSA(released.with_options(num_selected_blocks=16))
    assert parse_method("nsa", spec=NSASpec(window_size=8)).spec.window_size == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparser", "method='sparser': want one of 'dense', "),
        ("", "method='': want one of"),
        ("nsa+", r"method='nsa\+': want one of"),
        ("dense:size=2", "method 'dense' has no option 'size': want none"),
        ("nsa:size=2", "method 'nsa' has no option 'size': want some of block_size, "),
        ("nsa:window_size", "method 'nsa': 'window_size' is no option: want key=value"),
        ("nsa:window_size=4,window_size=5", "method 'nsa' is told window_size twice"),
        ("nsa:window_size=some", "method 'nsa': window_size='some': want a whole number"),
        ("nsa:window_size=0", "window_size=0: want an int from 1 to"),
        ("nsa:block_size=row", "block_size='row': want a whole number or frame"),
        ("nsa:gate_temperature=inf", "gate_temperature='inf': want a number"),
        ("fewer:merges=yes", "merges='yes': want true or false"),
        ("fewer:layers=1/x", "layers='1/x': want a whole number, others with / between"),
        ("fewer:kind=max", "kind='max': want cls or mean"),
        ("fewer:ratio=2", "ratio=2.0: want more than 0, at most 1"),
        ("dense+nsa", r"method dense\+nsa: 'dense' says itself how tokens attend: want a method"),
        ("fewer:attention=dense", "method 'fewer' has no option 'attention'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(fewer, text, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_method(text)
    assert "\n" not in str(caught.value)


def test_any_text_is_a_method_or_refused_by_name(fewer):
    draw = random.Random(0)
    pieces = [*METHODS, "fewer", *(option.name for option in options_of(NSA)), "patterns", "layer"]
    pieces += [*":::+++,,,===//.-_", "0", "7", "1e9", "none", "true", "nan", "\0", "\n", "\u0663"]
    for _ in range(1000):
        text = "".join(draw.choices(pieces, k=draw.randrange(1, 8)))
        with suppress(UsageError):
            assert isinstance(parse_method(text), AttentionMethod), text


def test_a_loaded_model_attends_by_its_text_and_its_config_states_the_spec(tiny_folder):
    model = videonsa.load(tiny_folder, method="nsa:window_size=5", device="cpu").model
    assert model.method.spec.window_size == 5
    assert model.config.nsa_spec == model.method.spec
    assert model.config.method == model.method


def test_a_method_behind_compression_gets_its_gates(tiny_folder, fewer):
    assert videonsa.load(tiny_folder, method="fewer+nsa", device="cpu").model.config.gates
    for method in ("fewer", "fastv:layer=1"):
        model = videonsa.load(tiny_folder, method=method, device="cpu").model
        assert model.config.method.name == "dense"
        assert not model.config.gates
