"""In bfloat16, vLLM is as far from the engine in float32 as the engine in bfloat16 is."""

import pytest
import torch
from conversations import difference, generate, mixed_chats, start, weigh

from videonsa import load

OF_THE_ENGINE = 1.5
"""The most that vLLM's errors may be, root mean square and largest, of the engine's own."""


@pytest.mark.skipif(
    torch.cpu._is_amx_tile_supported(), reason="refused: the order of keys for AMX is not known"
)
def test_errors_are_those_of_the_dtype():
    exact, rounded = load(dtype="float32"), load(dtype="bfloat16")
    chats = mixed_chats(25)
    found = generate(start(dtype="bfloat16", max_num_batched_tokens=64), exact, chats)
    engines, theirs = [], []
    for chat, output in zip(chats, found, strict=True):
        weighed = weigh(chat.engine(exact), output)
        assert weighed.is_greedy
        again = weigh(chat.engine(rounded), output)
        engines.append(again.log_probability - weighed.log_probability)
        theirs.append(difference(exact, chat, output))
    engines, theirs = torch.tensor(engines), torch.tensor(theirs)
    assert 0.001 < theirs.square().mean().sqrt() < OF_THE_ENGINE * engines.square().mean().sqrt()
    assert theirs.abs().max() < OF_THE_ENGINE * engines.abs().max()
