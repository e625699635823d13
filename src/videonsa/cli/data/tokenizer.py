"""The tokenizer that counts the tokens of training data, and what tells it from others."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_counting_tokenizer(model: str) -> tuple["PreTrainedTokenizerBase", str]:
    """The tokenizer of a model, and a hash of its vocabulary and rules.

    Raises:
        ModelError: the model or its tokenizer is not there, or not readable.

    """
    from videonsa.data.tokens import hash_of_tokenizer
    from videonsa.models.checkpoints.tokenizer import load_tokenizer
    from videonsa.models.locate import locate_model

    tokenizer = load_tokenizer(locate_model(model))
    return tokenizer, hash_of_tokenizer(tokenizer)
