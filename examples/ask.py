"""Ask a video a question from Python.

    python examples/ask.py VIDEO QUESTION [MODEL]

MODEL is a folder, a Hugging Face id such as Enxin/VideoNSA, or 'embedded' (the default), the small
demonstration model that comes with the package.
"""

import sys

import videonsa


def main(video: str, question: str, model_name: str = "embedded") -> None:
    """Ask twice: once for the whole answer, once piece by piece with fewer frames."""
    model = videonsa.load(model_name)

    answer = model.ask(video, question, max_new_tokens=16)
    usage = answer.usage
    print(answer.text)
    print(f"{usage.num_frames} frames, {usage.video_tokens} of {usage.prompt_tokens} tokens")

    stream = model.ask(video, question, fps=1.0, max_new_tokens=16, stream=True)
    for piece in stream:
        print(piece, end="", flush=True)
    print(f"\n{stream.answer.usage.num_frames} frames at 1 frame a second")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: python examples/ask.py VIDEO QUESTION [MODEL]")
    try:
        main(*sys.argv[1:])
    except videonsa.VideoNSAError as error:
        sys.exit(f"error: {error}")
