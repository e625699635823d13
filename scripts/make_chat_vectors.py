"""Record chats as the published Qwen2.5-VL template and tokenizer write them.

    python scripts/make_chat_vectors.py TOKENIZER TEMPLATE tests/fixtures/processing/chat.json

TOKENIZER is a folder with the tokenizer of Qwen2.5 (tokenizer.json, tokenizer_config.json),
TEMPLATE the chat_template.json of Qwen2.5-VL. Each case holds the arguments of `chat_text`, the
text of the template with its placeholders repeated, and the ids of that whole text. `pieces` are
the ids of each piece of plain text, so that a test needs no tokenizer.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

SPECIAL = r"(<\|(?:im_start|im_end|vision_start|vision_end|image_pad|video_pad)\|>)"
QUESTION = "What happens after the dog catches the ball?"

CASES: tuple[dict[str, Any], ...] = (
    {"question": QUESTION, "vision": [["video", 6]]},
    {"question": QUESTION, "vision": []},
    {"question": QUESTION, "vision": [["video", 4]], "system": "Answer in one word."},
    {"question": "Compare them.", "vision": [["image", 4], ["video", 6], ["video", 2]]},
    {
        "question": "And then?",
        "vision": [["video", 3]],
        "history": [["Who is it?", "A man in a red coat."], ["Where?", "  In a park."]],
    },
    {"question": "Which?", "vision": [["video", 2]], "answer": "The blue square."},
    {
        "question": "When?",
        "vision": [],
        "history": [["Hello", "Hi! \U0001f3ac"]],
        "answer": "At 12.5 s\n",
    },
    {"question": "\n\nDas Auto f\u00e4hrt: \u54ea\u91cc\uff1f  \t\n", "vision": [["video", 1]]},
    {"question": "\n\nspaces   first", "vision": []},
)


def as_messages(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Write a case as the messages that the template takes."""
    messages: list[dict[str, Any]] = []
    if "system" in case:
        messages.append({"role": "system", "content": case["system"]})
    content: list[dict[str, str]] = [{"type": kind} for kind, _ in case["vision"]]
    for question, answer in [*case.get("history", []), [case["question"], case.get("answer")]]:
        content.append({"type": "text", "text": question})
        messages.append({"role": "user", "content": content})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        content = []
    return messages


def repeat_pads(text: str, vision: list[list[Any]]) -> str:
    """Repeat each placeholder as often as its image or video has merged tokens."""
    counts = iter(vision)
    return re.sub(r"<\|(?:image|video)_pad\|>", lambda match: match.group() * next(counts)[1], text)


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
    for case in CASES:
        text = tokenizer.apply_chat_template(
            as_messages(case),
            chat_template=template,
            tokenize=False,
            add_generation_prompt="answer" not in case,
        )
        text = repeat_pads(text, case["vision"])
        ids = tokenizer.encode(text, add_special_tokens=False)
        cases.append({**case, "text": text, "ids": ids})
        answers = [*(answer for _, answer in case.get("history", [])), case.get("answer")]
        for piece in filter(None, re.split(SPECIAL, text)):
            head = "assistant\n"
            parts = [head, piece.removeprefix(head)] if piece[len(head) :] in answers else [piece]
            pieces |= {part: tokenizer.encode(part, add_special_tokens=False) for part in parts}
    recorded = {"pieces": pieces, "cases": cases}
    args.output.write_text(json.dumps(recorded, indent=1) + "\n", "utf-8")
    print(f"{len(cases)} chats -> {args.output}")


if __name__ == "__main__":
    main()
