"""What the layers held and computed of a prompt that was read."""

from videonsa.inference.context import Context
from videonsa.models.methods.pairs import causal_pairs
from videonsa.planning.computed import Computed, LayerTokens


def measure_computed(
    context: Context, *, prompt_tokens: int, video_tokens: int, encoded_tokens: int
) -> Computed:
    """Of an answered prompt of one sample; waits for the device.

    Args:
        context: which read the prompt, whether or not its question and answer stayed.
        prompt_tokens: that were read, video and text.
        video_tokens: of these, vision tokens.
        encoded_tokens: vision tokens that the tower gave.
    """
    cache, held = context.cache, context.num_tokens
    left = [LayerTokens(one.first_layer, sum(one.frame_sizes[0])) for one in cache.records]
    pairs = None
    if cache.computed is not None and (held >= prompt_tokens or context.method.text_is_dense):
        counted = cache.computed.fork()
        counted.keep(prompt_tokens)
        more = max(prompt_tokens - held, 0)  # the question, asked aside
        lengths = (layer.get_seq_length() + more for layer in cache.layers)
        pairs = counted.total() + sum(causal_pairs(more, length) for length in lengths)
    whole = prompt_tokens + encoded_tokens - video_tokens
    return Computed.of(
        tower_tokens=encoded_tokens,
        left=left,
        pairs=pairs,
        dense_pairs=len(cache.layers) * causal_pairs(whole),
    )
