"""What rooms share: a tiny random model, a short clip, and where the Triton kernels run."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

# Without a GPU the kernels run in Triton's interpreter. Triton decides when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

KERNEL_TESTS = Path(__file__).parent / "ops/triton"
# The interpreter reads scalars out of arrays of one element, which numpy discourages.
OF_THE_INTERPRETER = (
    "ignore:Conversion of an array with ndim > 0 to a scalar is deprecated:DeprecationWarning"
)
HAS_TRITON = importlib.util.find_spec("triton") is not None
collect_ignore_glob = [] if HAS_TRITON else ["ops/triton/test_*.py"]

TOKENIZER = Path(__file__).parents[1] / "src/videonsa/assets/embedded"


def write_tiny_model(folder: Path) -> None:
    """Two layers, G = 2, context of 2048 tokens, blocks of 8 tokens, random weights, float32."""
    from transformers import AutoTokenizer

    from videonsa.models.config import VideoNSAConfig
    from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    token_ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("vision_start", "vision_end")
    } | {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>")
        for name in ("image", "video")
    }
    config = VideoNSAConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000.0,
                "mrope_section": [4, 2, 2],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [0],
        },
        nsa={"block_size": 8, "num_selected_blocks": 2, "window_size": 8},
        attention="nsa",
        tie_word_embeddings=True,
        **token_ids,
    )
    torch.manual_seed(0)
    VideoNSAForConditionalGeneration(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `write_tiny_model`, made once."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_model(folder)
    return folder


def write_clip(
    path: Path, *, num_frames: int, width: int = 112, height: int = 84, fps: int = 2
) -> Path:
    """A video whose frames differ; MPEG-4, so that every build of FFmpeg can write it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        rows = np.arange(height)[:, None, None]
        for index in range(num_frames):
            picture = np.broadcast_to((rows + 20 * index) % 256, (height, width, 3)).astype(
                np.uint8
            )
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def clip_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frames in four seconds, 112 x 84: a grid of (4, 6, 8) and 48 video tokens."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", num_frames=8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files that take long begin first: what is left at the end is short, for either process.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if item.path.is_relative_to(KERNEL_TESTS):
            item.add_marker(pytest.mark.filterwarnings(OF_THE_INTERPRETER))
        for name, least in (("gpu", 1), ("multi_gpu", 2)):
            if item.get_closest_marker(name) and torch.cuda.device_count() < least:
                item.add_marker(pytest.mark.skip(reason=f"wants {least} CUDA devices"))


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """What PyTorch keeps goes back: `videonsa bench attention` runs tests side by side."""
    if item.get_closest_marker("gpu"):
        torch.cuda.empty_cache()


@pytest.fixture(scope="session", autouse=True)
def lean_interpreter() -> Iterator[None]:
    """Triton's interpreter without work that has no effect: it takes two thirds of the time.

    Overflow of integers is computed but looked at only in debug mode, which is off. And the
    language is patched again at every call of a device function, though the launch has done so.
    """
    if torch.cuda.is_available() or not HAS_TRITON:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    builder, patch_lang = interpreter.interpreter_builder, interpreter._patch_lang

    def patch_lang_once(kernel: Callable[..., Any]) -> Any:
        if any(tl.core.is_builtin(language.load) for language in (tl, tl.core)):
            return patch_lang(kernel)
        return interpreter._LangPatchScope()

    assert not builder.options.debug
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
        patch.setattr(interpreter, "_patch_lang", patch_lang_once)
        yield


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run. On the CPU they must have been imported as interpreted kernels."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    from triton.runtime.interpreter import InterpretedFunction

    from videonsa.ops.triton.pool import _pool_kernel

    assert isinstance(_pool_kernel, InterpretedFunction), (
        "Triton was imported before tests/conftest.py set TRITON_INTERPRET"
    )
    return torch.device("cpu")
