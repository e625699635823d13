"""The options of how the tokens of an answer are chosen, for the commands that answer."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from videonsa.cli import values
from videonsa.cli.common import LineParser

if TYPE_CHECKING:
    from videonsa.inference.sampling import GenerationSettings

_NAMES = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "stop", "seed")


def add_generation_options(parser: LineParser) -> None:
    """--max-new-tokens, --temperature, --top-p, --top-k, --repetition-penalty, --stop, --seed."""
    options = parser.add_argument_group(
        "how tokens are chosen",
        "What is not given is as the checkpoint's generation_config.json says, else as told here.",
    )
    options.add_argument(
        "--max-new-tokens",
        type=values.integer,
        metavar="N",
        help="most tokens of an answer (else: 64)",
    )
    options.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help="0 takes the likeliest token; above 0 tokens are drawn (else: 0)",
    )
    options.add_argument(
        "--top-p",
        type=float,
        metavar="X",
        help="draw from the likeliest tokens that hold this much of the probability (else: 1, all)",
    )
    options.add_argument(
        "--top-k",
        type=values.integer,
        metavar="N",
        help="draw from so many of the likeliest tokens (else: 0, all)",
    )
    options.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="above 1, tokens of the prompt and of the answer so far become less likely "
        "(else: 1, no penalty)",
    )
    options.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end the answer before this text; may be given several times",
    )
    options.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="makes drawing repeatable (else: a new one, which is told)",
    )


def generation_options(args: Namespace) -> dict[str, Any]:
    """The options that were given, by the keywords of `VideoQA.ask`."""
    given = {name: getattr(args, name) for name in _NAMES}
    return {name: value for name, value in given.items() if value is not None}


def checked_generation_options(args: Namespace) -> dict[str, Any]:
    """As `generation_options`; UsageError for a value outside its domain."""
    from videonsa.inference.sampling import GenerationOptions

    options = generation_options(args)
    GenerationOptions(**options)
    return options


def generation_text(settings: "GenerationSettings") -> str:
    """How tokens are chosen, in one line; what changes nothing is left out."""
    words = ["the likeliest token"]
    if settings.draws:
        words = [f"drawn at temperature {settings.temperature:g}"]
        words += [f"top_p {settings.top_p:g}"] if settings.top_p < 1 else []
        words += [f"top_k {settings.top_k}"] if settings.top_k else []
        words += [f"seed {settings.seed}"]
    if settings.repetition_penalty != 1:
        words.append(f"repetition_penalty {settings.repetition_penalty:g}")
    words.append(f"at most {settings.max_new_tokens} tokens")
    if settings.stop:
        words.append("up to " + " or ".join(map(repr, settings.stop)))
    return ", ".join(words)
