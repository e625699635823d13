from videonsa.disk import LOCK
from videonsa.server.state import own_folder


def test_a_folder_goes_at_the_end_and_those_of_killed_servers_at_the_next_start(tmp_path):
    killed, others = tmp_path / "videonsa-serve-killed", tmp_path / "videonsa-serve-others"
    for folder in (killed, others):
        folder.mkdir()
        (folder / "content").write_bytes(b"x")
    (killed / LOCK).touch()
    with own_folder(tmp_path) as held, own_folder(tmp_path) as folder:
        assert sorted(tmp_path.iterdir()) == sorted([others, held, folder])
        (folder / "content").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == [others]
