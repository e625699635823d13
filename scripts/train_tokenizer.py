"""Train the embedded model's tokenizer: byte-level BPE in the Qwen chat format.

    python scripts/train_tokenizer.py src/videonsa/assets/embedded
    python scripts/train_tokenizer.py --corpus sentences.txt src/videonsa/assets/embedded

The corpus is UTF-8 text, one question or answer a line; without one, the questions and answers
below are used. The same corpus gives the same bytes. Every byte has a token, and nothing is
normalised, so any text survives the round trip.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# How Qwen2 splits text before the merges: contractions, words with the character before them,
# single digits, punctuation, line breaks, spaces.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type in ('image', 'video') -%}
{{- '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' -}}
{%- else -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

COLOURS = (
    "red",
    "green",
    "blue",
    "yellow",
    "purple",
    "white",
    "black",
    "orange",
    "pink",
    "grey",
    "brown",
    "cyan",
)
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "star", "ring", "heart")
DIRECTIONS = ("left", "right", "up", "down")
NUMBERS = (
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "7",
    "8",
    "9",
    "10",
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
ORDERS = ("first", "second", "third", "fourth", "last")
PARTS = ("quarter", "half", "third", "part", "second", "minute", "frame")

QUESTIONS = (
    "What colour is the {shape}?",
    "Which colour does the {shape} have?",
    "What is the color of the {shape}?",
    "What shape is the {colour} object?",
    "Which shape does the {colour} object have?",
    "How many objects are there?",
    "How many objects move?",
    "How many moving objects are there?",
    "How many {colour} objects can you see in the video?",
    "How many {shape}s appear?",
    "Which way does the {colour} {shape} move?",
    "In which direction does the {colour} {shape} move?",
    "Where does the {colour} {shape} go?",
    "Which came first, the {colour} {shape} or the {shape}?",
    "Which appeared first, the {colour} {shape} or the {colour} {shape}?",
    "Which vanished last, the {colour} {shape} or the {colour} {shape}?",
    "What flashed?",
    "Which object flashed?",
    "What flashed in the {order} {part}?",
    "When did something flash?",
    "When did the {colour} {shape} flash?",
    "In which {part} was the flash?",
    "Did the {colour} {shape} appear before or after the {shape}?",
    "What happens at the beginning, in the middle and at the end of the video?",
    "How long is the clip, and how fast does the {shape} move?",
    "Is there a {colour} {shape} at the top, the bottom or the centre?",
    "Describe the video. Who is in it, and what are they doing?",
    "Why did the {shape} stop?",
    "What changed between the {order} frame and the {order} frame?",
)

SENTENCES = (
    "Yes, I can see it, but I do not know what it is.",
    "No, there is nothing like that in this video; it would be hard to say more.",
    "Please tell me about the people, the animals and the things that we see here.",
    "Two women and three men walk along the street with their children and a small dog.",
    "A young man in a dark coat opens the door, looks around the room and sits down at the table.",
    "She takes a cup from the kitchen, puts it on her desk and begins to write a letter.",
    "The car turns left at the light, stops for a bus, and then drives over the bridge.",
    "At night the city is full of lights; in the morning the sky is clear and the sun comes up.",
    "Boats go out on the river while birds fly above the water and the trees.",
    "He holds a big ball in one hand, throws it high, and another player tries to catch it.",
    "Someone is talking to the camera, showing how to make bread with flour, salt and water.",
    "Could you give me a short answer, just one word, please?",
    "Explain step by step why you think so, and what might happen next.",
    "Where was the woman before she left the house, and who came back with her?",
    "What does the text on the sign say, and which number is written under it?",
    "Does anything else change during the scene, or does everything stay the same?",
    "Count every time that the person picks up the phone.",
    "What time of day is it, and what is the weather like?",
    "Which of these best describes the main event? Answer with the letter of the right choice.",
    "Select the best answer from the options: (A), (B), (C) or (D).",
    "Summarize what you saw between the start and the end, without too many details.",
    "Is the music loud, is anyone dancing, and do they look happy?",
    "This is a game of football between the red team and the blue team; the score is two to one.",
    "First they cut the paper, then they fold it, and finally they use some glue.",
    "It seems to be a very old film: black and white, with no sound and only few words.",
    "The objects become larger, slower, brighter and closer than they were.",
    "Most of them disappear behind the wall after about half an hour.",
    "Because the picture is blurred, we cannot be sure how far away he was.",
    "I'm sorry, that's all I've found; you'll have to look again if you'd like more.",
    "The same shape appears twice: once near the top corner and again below the line.",
)

ANSWERS = (
    "{colour}",
    "{shape}",
    "{colour} {shape}",
    "{direction}",
    "{number}",
    "yes",
    "no",
    "before",
    "after",
    "in the {order} {part}",
    "The {colour} {shape}.",
    "The {shape} is {colour}.",
    "It moves {direction}.",
    "There are {number} objects.",
    "At {number} seconds.",
    "Nothing flashed.",
)

WORDS = {
    "colour": COLOURS,
    "shape": SHAPES,
    "direction": DIRECTIONS,
    "number": NUMBERS,
    "order": ORDERS,
    "part": PARTS,
}
LINES_PER_TEMPLATE = 96


def _fill(template: str, cycles: dict[str, Iterator[str]]) -> str:
    """Put the next word of its list at every placeholder."""
    pieces = template.split("{")
    text = pieces[0]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}")
        text += next(cycles[name]) + rest
    return text


def default_corpus() -> list[str]:
    """Questions and answers about rendered scenes many times over, and plain English once."""
    cycles = {name: itertools.cycle(words) for name, words in WORDS.items()}
    templates = ("You are a helpful assistant.", "system", "user", "assistant")
    return [
        _fill(template, cycles)
        for template in (*templates, *QUESTIONS, *ANSWERS)
        for _ in range(LINES_PER_TEMPLATE)
    ] + list(SENTENCES)


def train(lines: list[str], *, vocab_size: int) -> Tokenizer:
    """Train byte-level BPE; the special tokens take the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """Say how transformers loads the tokenizer."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": [
            token for token in SPECIAL_TOKENS if token not in ("<|endoftext|>", "<|im_end|>")
        ],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": 32768,
        "chat_template": CHAT_TEMPLATE,
    }


def main() -> None:
    """Train on a corpus and save the two files that AutoTokenizer reads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for the two tokenizer files")
    parser.add_argument("--corpus", type=Path, help="text, one question or answer a line")
    parser.add_argument("--vocab-size", type=int, default=1024, help="special tokens included")
    args = parser.parse_args()
    lines = args.corpus.read_text("utf-8").splitlines() if args.corpus else default_corpus()
    tokenizer = train(lines, vocab_size=args.vocab_size)
    args.output.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.output / "tokenizer.json"))
    config = json.dumps(tokenizer_config(), indent=2) + "\n"
    (args.output / "tokenizer_config.json").write_text(config, "utf-8")
    print(f"{tokenizer.get_vocab_size()} tokens from {len(lines)} lines -> {args.output}")


if __name__ == "__main__":
    main()
