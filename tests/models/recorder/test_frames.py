import pytest
import torch
from tiny_models import SPEC, VIDEO, config_fields, left_padded, prompt, qwen, tiny

from videonsa.errors import UsageError
from videonsa.models.cache import VideoNSACache
from videonsa.models.config import VideoNSAConfig
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.recorder.frames import AttentionRecorder
from videonsa.ops.spec import NSASpec


def test_text_mass_equals_the_attention_weights_of_transformers():
    reference, model = qwen(attn_implementation="eager"), tiny(attention="dense")
    model.load_state_dict(reference.state_dict())
    inputs, recorder = prompt(3), AttentionRecorder()
    model(**inputs, recorder=recorder)
    pixels, grids = inputs["pixel_values_videos"], inputs["video_grid_thw"]
    # One second a patch and a 2 x 2 grid: positions are t = 0, 2, 4, and text from 4 + 1 on.
    ids = torch.tensor([[0, 1, *[2] * 4, *[4] * 4, *[6] * 4, 7, 8, 9, 10]]).expand(3, 1, -1).clone()
    ids[1, 0, 2:14] = torch.tensor([2, 2, 3, 3] * 3)
    ids[2, 0, 2:14] = torch.tensor([2, 3, 2, 3] * 3)
    weights = reference(
        input_ids=inputs["input_ids"],
        pixel_values_videos=pixels,
        video_grid_thw=grids,
        position_ids=ids,
        output_attentions=True,
    ).attentions
    for layer, theirs in enumerate(weights):
        frames = theirs[0, :, -1, 2:14].mean(0).view(3, 4).sum(1)
        torch.testing.assert_close(recorder.text_mass()[layer, 0], frames, atol=1e-6, rtol=1e-4)


def test_mass_that_frames_lack_went_to_the_row_itself():
    model, inputs, recorder = tiny(), prompt(3), AttentionRecorder()
    inputs["input_ids"] = inputs["input_ids"][:, 2:-3].contiguous()  # the video and one token
    model(**inputs, recorder=recorder)
    mass = recorder.text_mass()
    assert mass.shape == (2, 1, 3)
    assert torch.all(mass > 0)
    assert torch.all(mass.sum(-1) < 1)  # the last token sees itself too


def test_selection_counts_later_rows_only():
    """Two blocks a row, the current one forced: each later row picks exactly one earlier frame."""
    model = tiny(spec=SPEC.with_options(num_selected_blocks=2))
    recorder = AttentionRecorder()
    model(**prompt(5), recorder=recorder)
    often = recorder.selection_frequency()
    assert often.shape == (2, 5)
    # Frame f has 4 - f later frames, so chances are (4 - f) * 4 rows * 2 heads.
    chances = torch.tensor([4.0, 3, 2, 1, 0]) * 8
    torch.testing.assert_close((often * chances).sum(1), torch.full((2,), 4.0 * 8))
    assert torch.all(often[:, -1] == 0)


def test_all_is_selected_where_all_fits():
    for spec in (SPEC.with_options(num_selected_blocks=9), NSASpec(block_size=3)):
        recorder = AttentionRecorder()
        tiny(spec=spec)(**prompt(5), recorder=recorder)
        expected = torch.tensor([1.0, 1, 1, 1, 0]).expand(2, 5)
        often = recorder.selection_frequency()
        if spec.block_size == "frame":
            torch.testing.assert_close(often, expected)
        else:  # a block that is still open to a row cannot be selected by it, but is its own
            assert torch.all(often[:, 0] == 1)


def test_steps_add_up_over_turns_with_more_frames():
    model, recorder = tiny(), AttentionRecorder()
    cache = model(**prompt(3), recorder=recorder).past_key_values
    assert recorder.text_mass().shape == (2, 1, 3)
    model(**prompt(2, seed=1), past_key_values=cache, recorder=recorder)
    mass = recorder.text_mass()
    assert mass.shape == (2, 2, 5)
    assert torch.all(mass[:, 0, 3:] == 0)
    assert torch.all(mass[:, 1, 3:] > 0)
    assert recorder.selection_frequency().shape == (2, 5)


def test_a_step_that_ends_in_a_frame_records_no_text():
    model, recorder = tiny(), AttentionRecorder()
    inputs = prompt(3)
    inputs["input_ids"] = inputs["input_ids"][:, :14]
    assert inputs["input_ids"][0, -1] == VIDEO
    model(**inputs, recorder=recorder)
    assert recorder.text_mass().numel() == 0
    assert recorder.selection_frequency().shape == (2, 3)


def test_dense_model_records_text_only():
    recorder = AttentionRecorder()
    tiny()(**prompt(3), recorder=recorder, method="dense")
    assert recorder.text_mass().shape == (2, 1, 3)
    assert recorder.selection_frequency().shape == (0, 3)


def test_padding_gets_no_mass():
    model = tiny()
    alone, padded = AttentionRecorder(), AttentionRecorder()
    model(**prompt(3), recorder=alone)
    batch = left_padded([prompt(3), prompt(6)])
    row = {name: batch[name][:1] for name in ("input_ids", "attention_mask")}
    model(**prompt(3) | row, recorder=padded)
    torch.testing.assert_close(padded.text_mass(), alone.text_mass(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(padded.selection_frequency(), alone.selection_frequency())


def test_released_preset_is_recorded():
    torch.manual_seed(0)
    fields = config_fields(hidden_size=28 * 16, num_attention_heads=28, num_key_value_heads=4)
    spec = NSASpec.released(num_selected_blocks=2, window_size=32)
    model = VideoNSAForConditionalGeneration(VideoNSAConfig(nsa=spec, **fields)).eval()
    recorder = AttentionRecorder()
    logits = model(**prompt(12, 8, 8), recorder=recorder).logits
    assert torch.all(logits.isfinite())
    often = recorder.selection_frequency()
    assert often.shape == (2, 12)
    assert torch.all((often >= 0) & (often <= 1))
    assert often.sum() > 0


def test_a_batch_is_refused():
    with pytest.raises(UsageError, match="a recorder with a batch of 2"):
        tiny()(**left_padded([prompt(2), prompt(3)]), recorder=AttentionRecorder())


@pytest.mark.parametrize("rows", [1, 3, 7, 20])
@pytest.mark.parametrize("spec", [SPEC, NSASpec(block_size=8, num_selected_blocks=3)], ids=str)
def test_chunks_record_what_one_go_records(spec, rows):
    model, inputs, found = tiny(spec=spec), prompt(6), []
    for chunk in (rows, 0):
        recorder = AttentionRecorder()
        with torch.no_grad():
            model(
                **inputs, past_key_values=VideoNSACache(), recorder=recorder, rows_per_chunk=chunk
            )
        found.append((recorder.text_mass(), recorder.selection_frequency()))
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
