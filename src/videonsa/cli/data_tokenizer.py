"""The tokenizer that counts the tokens of training data, and what tells it from others."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_counting_tokenizer(model: str) -> tuple["PreTrainedTokenizerBase", str]:
    """The tokenizer of a model, and a hash of its vocabulary and rules.

    Raises:
        ModelError: the model or its tokenizer is not there, or not readable.

    """
    from videonsa.inference.locate import locate_model
    from videonsa.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(locate_model(model))
    rules: str = tokenizer.backend_tokenizer.to_str()
    return tokenizer, hashlib.sha256(rules.encode()).hexdigest()
