"""VideoNSA in vLLM: `vllm serve FOLDER` where this package is installed beside vLLM."""
