"""Tensor parallelism over two processes, which talk by gloo: heads and gates are shared out."""

import pytest
from conversations import check_same, mixed_chats, start

from videonsa import load


@pytest.mark.usefixtures("known_model")
def test_two_processes_answer_as_one(monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    llm = start(tensor_parallel_size=2, max_num_batched_tokens=64)
    check_same(llm, load(dtype="float32"), mixed_chats(12))
