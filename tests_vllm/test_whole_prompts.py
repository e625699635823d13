"""A method that chooses keys by the whole prompt reads it whole."""

from conversations import Chat, check_same, start, video

from videonsa import load

TRI_SHAPE = "tri_shape:n_init=8,n_local=32,n_last=8"


def test_a_method_of_prompts_reads_them_whole():
    llm = start(
        max_num_batched_tokens=2048,
        enable_prefix_caching=False,
        enable_chunked_prefill=False,
        additional_config={"videonsa_method": TRI_SHAPE},
    )
    chats = [Chat((video(seed, 16 + seed), "What flashed?")) for seed in range(6)]
    check_same(llm, load(dtype="float32", method=TRI_SHAPE), chats)
