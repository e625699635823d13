import socket
import sys

from videonsa.cli.main import main


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "videonsa.server.run", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    told = capsys.readouterr().err
    assert "uvicorn is not installed" in told and "pip install 'videonsa[serve]'" in told


def test_an_address_that_is_taken_is_told_before_weights_are_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port), "--model", "/nowhere"]) == 2
    told = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1 port {port}" in told and told.count("\n") == 1


def test_a_key_that_cannot_be_read_is_told(tmp_path, capsys):
    for content, said in ((None, "no such file"), (b"\xff\n", "not ascii"), (b"\n", "is empty")):
        path = tmp_path / "key"
        if content is not None:
            path.write_bytes(content)
        assert main(["serve", "--api-key-file", str(path)]) == 2
        assert said in capsys.readouterr().err.lower()
