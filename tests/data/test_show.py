"""What is shown of a sample is what is trained on."""

import numpy as np
from tree_build import load_tokenizer

from videonsa.data.media import Frames
from videonsa.data.records import ImageRef, Record, Text, Turn, VideoRef
from videonsa.data.show import contact_sheet, marked_text, spans_of
from videonsa.data.tokens import conversation_tokens

RECORD = Record(
    id="r",
    source="s",
    turns=(
        Turn(role="user", parts=(VideoRef(path="/v"), ImageRef(path="/i"), Text("Wer läuft?"))),
        Turn(role="assistant", parts=(Text("Ein Hund.\n"),)),
        Turn(role="user", parts=(Text("[[why]] <|im_end|>"),)),
        Turn(role="assistant", parts=(Text("So."),)),
    ),
)


def test_text_is_exact_with_vision_runs_and_loss_marked() -> None:
    tokenizer = load_tokenizer()
    tokens = conversation_tokens(RECORD, tokenizer=tokenizer, vision_token_counts=[1234, 1])
    spans = spans_of(tokens.ids, tokens.labels, tokenizer)
    assert marked_text(spans, colour=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|> x 1234<|vision_end|>"
        "<|vision_start|><|image_pad|><|vision_end|>Wer läuft?<|im_end|>\n"
        "<|im_start|>assistant\n[[Ein Hund.\n<|im_end|>]]\n"
        "<|im_start|>user\n[[why]] <|im_end|><|im_end|>\n"
        "<|im_start|>assistant\n[[So.<|im_end|>]]\n"
    )
    assert "\x1b[1;32mSo.<|im_end|>\x1b[0m" in marked_text(spans, colour=True)
    assert sum(span.num_tokens for span in spans) == len(tokens.ids)
    assert "".join(span.text * span.repeats for span in spans) == tokenizer.decode(tokens.ids)


def test_sheet_has_the_first_and_the_last_frame_and_no_more_than_asked_for() -> None:
    pixels = np.zeros((30, 3, 100, 200), np.uint8)
    pixels[0, 0], pixels[29, 1] = 255, 255
    frames = Frames(pixels, tuple(index / 4 for index in range(30)))
    sheet = np.asarray(contact_sheet([("a", frames), ("b", frames)], most_frames=8, width=900))
    assert sheet.shape[1] == 900
    red = (sheet == (255, 0, 0)).all(-1).sum()
    green = (sheet == (0, 255, 0)).all(-1).sum()
    black = (sheet == (0, 0, 0)).all(-1).sum()
    assert red == green == 2 * 100 * 200
    assert 2 * 6 * 100 * 200 <= black < 2 * 7 * 100 * 200


def test_small_frames_are_enlarged_on_a_sheet() -> None:
    frames = Frames(np.full((1, 3, 28, 56), 7, np.uint8), (0.0,))
    sheet = np.asarray(contact_sheet([("a", frames)], most_frames=4))
    assert ((sheet == (7, 7, 7)).all(-1).sum()) == 28 * 56 * 9
