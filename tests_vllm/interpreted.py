"""Imported before Triton: its kernels run in its interpreter, and vLLM for CPUs takes them."""

import os
from types import SimpleNamespace

os.environ |= {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1"}
from triton.backends import backends  # reads the environment

# vLLM looks for a compiler for CPUs, which the interpreter does without.
backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))
