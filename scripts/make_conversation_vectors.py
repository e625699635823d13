"""Record whole conversations as the published Qwen2.5-VL template and tokenizer write them.

    python scripts/make_conversation_vectors.py TOKENIZER TEMPLATE OUTPUT

OUTPUT is tests/fixtures/processing/conversations.json; TOKENIZER and TEMPLATE are those of
make_chat_vectors.py. Each case holds a record, the tokens of its videos and images, the text of the
template, the ids of that whole text, and the labels, which are found by where the answers stand in
the text. `pieces` are the ids of each piece of plain text, so that a test needs no tokenizer.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from make_chat_vectors import SPECIAL, repeat_pads

ANSWER = re.compile(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", re.DOTALL)
HEAD = "assistant\n"
V1, V2, IMAGE = ({"video": "a.mp4"}, {"video": "b.mp4", "fps": 4.0}, {"image": "c.png"})

Parts = list[Any]
CASES: tuple[tuple[str | None, list[tuple[Parts, str]]], ...] = (
    (None, [([V1, V2, IMAGE, "Compare all three."], "They show the same street.")]),
    (None, [([IMAGE, V1, "First", V2, "and second?"], "The second is longer.")]),
    (None, [([V1, "What is this?"], "A dog."), ([V2, IMAGE, "And these?"], "Two cats.")]),
    (
        None,
        [
            ([V1, "Who?"], "A man in a red coat."),
            (["Where does he go?"], "Into the park."),
            (["Is he here? ", V2], "No."),
            (["And here? ", IMAGE], "Yes, on the left."),
        ],
    ),
    ("Answer in one word.", [([V1, V2, IMAGE, "Which is night?"], "First")]),
    ("", [([V1, IMAGE, V2, "Order?"], "1, 3, 2")]),
    (
        None,
        [(["\n\nBefore: ", V1, "\nafter: ", V2, "\nstill: ", IMAGE, "\n"], "Nothing changed.\n")],
    ),
    (
        None,
        [
            (
                [V1, V2, IMAGE, "\u54ea\u91cc\uff1f Wo f\u00e4hrt es \U0001f697?"],
                "\u5de6\u8fb9 \U0001f6a6",
            )
        ],
    ),
    (None, [([V1, V2, IMAGE], "No question was asked."), (["  two   spaces "], " kept  as is ")]),
    (
        "You see pictures.\nSay what is there.",
        [
            ([V1, V1, IMAGE, "A.\nB.\nC.\nD.\n\nAnswer with the letter."], "B."),
            ([IMAGE, "Why?"], "It moves."),
        ],
    ),
)


def record_of(number: int, system: str | None, exchanges: list[tuple[Parts, str]]) -> Any:
    """The JSON of a record."""
    turns = [] if system is None else [{"role": "system", "parts": [{"text": system}]}]
    for asked, answered in exchanges:
        parts = [{"text": part} if isinstance(part, str) else part for part in asked]
        turns.append({"role": "user", "parts": parts})
        turns.append({"role": "assistant", "parts": [{"text": answered}]})
    return {"id": f"case {number}", "source": "vectors", "turns": turns}


def as_messages(record: Any) -> list[dict[str, Any]]:
    """Write a record as the messages that the template takes."""
    messages = []
    for turn in record["turns"]:
        content = [
            {"type": "text", "text": part["text"]}
            if "text" in part
            else {"type": "video" if "video" in part else "image"}
            for part in turn["parts"]
        ]
        messages.append({"role": turn["role"], "content": content})
    return messages


def labels_of(text: str, encoded: Any) -> list[int]:
    """The id of each token that begins inside an answer or its closing token, else -100."""
    answers = [match.span(1) for match in ANSWER.finditer(text)]
    return [
        token if any(begin <= start < end for begin, end in answers) else -100
        for token, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def main() -> None:
    """Run every case and write one JSON file."""
    from videonsa.models.checkpoints.tokenizer import load_tokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("template", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.tokenizer)
    template = json.loads(args.template.read_text("utf-8"))["chat_template"]
    cases, pieces = [], {}
    for number, (system, exchanges) in enumerate(CASES):
        record = record_of(number, system, exchanges)
        media = [part for turn in record["turns"] for part in turn["parts"] if "text" not in part]
        counts = [3 + (5 * number + 2 * index) % 7 for index in range(len(media))]
        text = tokenizer.apply_chat_template(
            as_messages(record), chat_template=template, tokenize=False
        )
        text = repeat_pads(text, [["", count] for count in counts])
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        cases.append(
            {
                "record": record,
                "counts": counts,
                "text": text,
                "ids": encoded["input_ids"],
                "labels": labels_of(text, encoded),
            }
        )
        for piece in filter(None, re.split(SPECIAL, text)):
            parts = [HEAD, piece.removeprefix(HEAD)] if piece.startswith(HEAD) else [piece]
            pieces |= {part: tokenizer.encode(part, add_special_tokens=False) for part in parts}
    recorded = {"pieces": pieces, "cases": cases}
    args.output.write_text(json.dumps(recorded, separators=(",", ":")) + "\n", "utf-8")
    print(f"{len(cases)} conversations -> {args.output}")


if __name__ == "__main__":
    main()
