"""The paper's blocks, selection and window, in a prompt that has more blocks than are selected."""

from conversations import MOST, QUESTIONS, Chat, check_same, difference, image, start, video

from videonsa import load
from videonsa.ops.spec import NSASpec
from videonsa.serving.vllm.checks import METHOD

PAPER = NSASpec()
METHOD_OF_PAPER = "nsa:" + ",".join(
    f"{name}={getattr(PAPER, name)}"
    for name in ("block_size", "num_selected_blocks", "window_size")
)


def test_the_paper_preset_answers_as_in_the_engine():
    assert METHOD_OF_PAPER == "nsa:block_size=64,num_selected_blocks=32,window_size=256"
    llm = start(
        max_model_len=4096, max_num_batched_tokens=480, additional_config={METHOD: METHOD_OF_PAPER}
    )
    chats = [
        Chat((video(41, 340), QUESTIONS[3])),
        Chat((image(42), video(43, 20), QUESTIONS[1])),
    ]
    long, _ = check_same(llm, load(dtype="float32", method=METHOD_OF_PAPER), chats)
    assert len(long.prompt_token_ids) > 40 * PAPER.block_size
    everything = load(dtype="float32", method=METHOD_OF_PAPER.replace("=32", "=99"))
    assert abs(difference(everything, chats[0], long)) > 2 * MOST, "all blocks were selected"
