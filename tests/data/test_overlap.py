import pytest
from conftest import TOKENIZER, write_clip
from small_manifest import record, write_manifest

from videonsa.data.overlap import overlap
from videonsa.data.records import VideoRef


@pytest.fixture
def manifest_of(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)

    def manifest_of(name, *records):
        return write_manifest(tmp_path / f"{name}.parquet", records, tokenizer)

    return manifest_of


def test_records_and_videos_that_two_manifests_share_are_counted(manifest_of, tmp_path):
    clips = [
        VideoRef(path=str(write_clip(tmp_path / f'a "{i}".mp4', num_frames=4))) for i in range(3)
    ]
    same, said = record("same", clips[0]), f'{{"video":"{clips[2].path}"}}'
    trained = manifest_of("trained", same, record("video", clips[1]), record("text"))
    held_out = manifest_of(
        *("held_out", same, record("another", clips[1])),
        *(record("new", clips[2]), record("other text", answer=said)),
    )
    assert overlap(held_out, trained) == (1, 1)
    assert overlap(trained, held_out) == (1, 1)
    assert overlap(manifest_of("own", record("new", clips[2])), trained) == (0, 0)
