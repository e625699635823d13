"""The exception tree. Every message is one line: what came, what was wanted, what to do.

VideoNSAError
    UsageError    an argument that cannot be used (also a ValueError)
    VideoError    a video that cannot be read
    ModelError    weights, config or tokenizer that cannot be used
    BudgetError   a video or a question that does not fit the context or the memory
    DataError     training data of which too much cannot be read
    TrainingError a training run that cannot go on
"""


class VideoNSAError(Exception):
    """Base of all errors that a user can cause and mend."""


class UsageError(VideoNSAError, ValueError):
    """An argument that cannot be used."""


class VideoError(VideoNSAError):
    """A video that cannot be read, or that holds nothing to read."""


class ModelError(VideoNSAError):
    """Weights, a config or a tokenizer that cannot be used."""


class BudgetError(VideoNSAError):
    """A video or a question that does not fit the context or the memory."""


class DataError(VideoNSAError):
    """Training data of which too much cannot be read."""


class TrainingError(VideoNSAError):
    """A training run that cannot go on."""


def missing_package(package: str, *, extra: str) -> UsageError:
    """What to raise where an optional package is not installed; `extra` of videonsa brings it."""
    return UsageError(
        f"{package} is not installed, and this needs it: pip install 'videonsa[{extra}]'"
    )
