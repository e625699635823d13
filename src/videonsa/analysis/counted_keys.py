"""Keys of a vision token, as a method attends: counted, not estimated."""

import torch

from videonsa.models.methods import AttentionMethod
from videonsa.models.methods.nsa import NSA
from videonsa.models.methods.pairs import branch_keys
from videonsa.ops.spec import BRANCHES, NSASpec


def block_tokens(spec: NSASpec, tokens_per_frame: int) -> int:
    """Tokens of a block, where a frame may be one."""
    selected = spec.attention_keys(tokens_per_frame) - spec.window_size
    return selected // spec.num_selected_blocks


def mean_keys(
    method: AttentionMethod, *, num_tokens: int, tokens_per_frame: int
) -> tuple[float, float]:
    """Means over the vision tokens of one video: keys that are tokens, and compressed keys.

    The first are those of the selected blocks and of the window as the paper counts them, a token
    in both twice; in dense attention, all up to a token itself. The paper leaves the second out.

    Args:
        method: NSA or dense attention.
        num_tokens: of the video.
        tokens_per_frame: of a pair of frames.
    """
    if not isinstance(method, NSA):
        return (num_tokens + 1) / 2, 0.0
    ranks = torch.arange(1, num_tokens + 1)
    size = block_tokens(method.spec, tokens_per_frame)

    def mean(branches: tuple[str, ...]) -> float:
        listed = tuple(one for one in branches if one in method.spec.branches)
        spec = method.spec.with_options(branches=listed)
        keys = branch_keys(ranks, spec, block_size=size, num_keys=num_tokens)
        return float(keys.double().mean())

    return mean(BRANCHES[1:]), mean(BRANCHES[:1])
