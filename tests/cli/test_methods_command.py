import json

from videonsa.cli.main import main
from videonsa.models.methods import METHODS, parse_method
from videonsa.models.methods.options import options_of


def test_every_method_is_listed_with_its_options_and_what_it_cannot(capsys):
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    for name, entry in METHODS.items():
        (own,) = [part for part in shown.split("\n\n") if part.startswith(f"{name}: ")]
        own = " ".join(own.split())
        assert entry.what in own
        assert entry.paper in own
        assert all(f"{option.name}=" in own for option in options_of(entry.load()))
    dense, nsa = (shown.split("\n\n")[number] for number in (0, 1))
    assert "training: yes" in dense
    assert "options" not in dense
    assert "block_size=64, num_selected_blocks=32, window_size=256" in nsa
    assert "branches=compressed/selected/window" in nsa
    assert "session   read once" in nsa


def test_as_json_options_have_defaults_that_the_method_has(capsys):
    assert main(["methods", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["methods"]
    assert list(found) == list(METHODS)
    for name, facts in found.items():
        defaults = {key: option["default"] for key, option in facts["options"].items()}
        stated = json.loads(json.dumps(parse_method(name).parameters() or {}))
        assert stated.items() <= defaults.items()
    assert found["nsa"]["gates"]
    assert [name for name, facts in found.items() if facts["live"]] == ["dense", "nsa", "visionzip"]
    assert found["fastv"]["method_behind"]
    assert found["fastv"]["session"].startswith("read again for each question: ")


def test_a_name_that_is_none_is_refused_with_those_there_are(tiny_folder, clip_path, capsys):
    arguments = ["ask", str(clip_path), "?", "--model", str(tiny_folder)]
    assert main([*arguments, "--method", "fasterv:ratio=0.5"]) == 2
    assert "method='fasterv': want one of 'dense', 'nsa'" in capsys.readouterr().err
