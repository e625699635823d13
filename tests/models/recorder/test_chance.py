"""What a selection at random would pick, against counting every choice."""

from fractions import Fraction

import pytest
import torch
from tiny_models import SPEC, prompt, tiny

from videonsa.models.recorder.chance import rows_by_block, uniform_picks
from videonsa.models.recorder.frames import AttentionRecorder
from videonsa.models.recorder.gates import FrameGates
from videonsa.models.recorder.protocol import Recorders
from videonsa.ops.spec import NSASpec


def brute(frames, blocks, selected, spec, num_frames, num_blocks):
    """Row by row and head by head."""
    picks = [[Fraction(0)] * num_blocks for _ in range(num_frames)]
    for row, (frame, own) in enumerate(zip(frames.tolist(), blocks.tolist(), strict=True)):
        for head in selected[row].tolist():
            count = sum(block >= 0 for block in head)
            taken = {own, *range(min(spec.num_init_blocks, own))}
            taken |= set(range(max(0, own - spec.num_local_blocks), own))
            others = set(range(own + 1)) - taken
            for block in taken:
                picks[frame][block] += 1
            for block in others:
                picks[frame][block] += Fraction(count - len(taken), len(others))
    return torch.tensor([[float(one) for one in row] for row in picks])


@pytest.mark.parametrize(("init", "local"), [(0, 0), (1, 0), (2, 1)])
def test_expected_picks_are_those_of_each_row_by_itself(init, local):
    spec = NSASpec(
        block_size=3, num_selected_blocks=4, num_init_blocks=init, num_local_blocks=local
    )
    frames, blocks = torch.arange(24) // 4, torch.arange(24) // 3
    selected = torch.full((24, 2, 4), -1)
    for row, own in enumerate(blocks.tolist()):
        chosen = min(4, own + 1)
        selected[row, :, :chosen] = torch.arange(own + 1 - chosen, own + 1)
    counted = rows_by_block(frames, blocks, selected, num_frames=6, num_blocks=8)
    expected = brute(frames, blocks, selected, spec, 6, 8)
    torch.testing.assert_close(uniform_picks(counted, spec, num_heads=2), expected)


def test_what_is_selected_at_random_is_what_chance_expects():
    recorder = AttentionRecorder()
    spec = SPEC.with_options(selection="random", num_selected_blocks=2)
    tiny(spec=spec)(**prompt(24), recorder=recorder)
    seen = recorder.selection_frequency().mean(0)[:12]
    uniform = recorder.selection.uniform_frequency().mean(0)[:12]
    torch.testing.assert_close(seen, uniform, atol=0.05, rtol=0)
    assert float(uniform[0]) > 2 * float(uniform[11])  # earlier frames have had more chances


def test_even_mass_is_the_share_of_keys():
    recorder = AttentionRecorder()
    tiny()(**prompt(3), recorder=recorder)
    torch.testing.assert_close(recorder.text.even_mass(), torch.full((2, 1, 3), 4 / 18))


def test_gates_of_frames_are_the_means_of_their_tokens_in_chunks_too():
    model, whole, parts = tiny(), FrameGates(), FrameGates()
    given = []

    class Keep(FrameGates):
        def record(self, layer, q, k, attended):
            given.append(attended.gates)

    with torch.no_grad():
        plain = model(**prompt(3)).logits
        seen = model(**prompt(3), recorder=Recorders(whole, Keep(), AttentionRecorder())).logits
        model(**prompt(3), recorder=parts, rows_per_chunk=5)
    assert torch.equal(plain, seen)
    expected = torch.stack([gates[0, 2:14].unflatten(0, (3, 4)).mean((1, 2)) for gates in given])
    torch.testing.assert_close(whole.means(), expected)
    torch.testing.assert_close(parts.means(), expected)
