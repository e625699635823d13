"""Runs in vLLM's own virtual environment: see scripts/vllm_env.sh."""

import os

import pytest

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


@pytest.fixture(scope="session", autouse=True)
def known_model():
    from videonsa.serving.vllm.plugin import register

    register()
