"""Models and prompts of the cases, and the names that differ between two versions.

The cases run on this file with the code of either version, so it may only use what both have. What
was moved or renamed between them stands in the first section, new names first.
"""

import importlib
import inspect
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

# --- Names that differ between versions --------------------------------------------------------


def first_of(*places: str) -> Any:
    """The first of some `module:name` that this version has."""
    for place in places:
        module, name = place.split(":")
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("videonsa"):
                raise  # a package that is missing here
            continue
        if hasattr(found, name):
            return getattr(found, name)
    raise ImportError(f"this version has none of {', '.join(places)}")


Config = first_of("videonsa.models.config:VideoNSAConfig")
Model = first_of(
    "videonsa.models.families.qwen2_5_vl:VideoNSAForConditionalGeneration",
    "videonsa.models.modeling:VideoNSAForConditionalGeneration",
)
Cache = first_of("videonsa.models.cache:VideoNSACache")
Spec = first_of("videonsa.ops.spec:NSASpec")
_PARAMETERS = inspect.signature(Model.forward).parameters
KEPT = ("attention", "nsa_spec", "backend", "method")
"""Keywords of `forward` that hold for all calls after a cache."""
SHARED_BY = next(name for name in ("cp_group", "exchange") if name in _PARAMETERS)
"""The keyword of `forward` for the processes that one sequence is sharded over."""


def context_parallel() -> Any:
    """The object for that keyword, over all processes."""
    kind = first_of(
        "videonsa.parallel.context:ContextParallelGroup",
        "videonsa.parallel.exchange:SequenceExchange",
    )
    return kind()


def attending(spec: Any = None) -> dict[str, Any]:
    """The keywords of `forward` for attention by a spec, or densely."""
    if "method" not in _PARAMETERS:
        return {"attention": "dense"} if spec is None else {"nsa_spec": spec}
    methods = importlib.import_module("videonsa.models.methods")
    return {"method": methods.Dense() if spec is None else methods.nsa_method(spec)}


def with_backend(backend: str) -> dict[str, Any]:
    """The keywords of `forward` for a backend of the ops; none where it belongs to the method."""
    return {} if "method" in _PARAMETERS else {"backend": backend}


def attend_by(model: Any, backend: str) -> None:
    """Where a backend belongs to the method, give it to that of the model."""
    if hasattr(getattr(model, "method", None), "backend"):
        model.method = replace(model.method, backend=backend)


def with_lora(model: Any) -> Any:
    """LoRA around a model, as training puts it there."""
    choose = first_of("videonsa.train.parameters:choose_parameters")
    settings = first_of("videonsa.train.settings:ModelSettings")
    return choose(model, settings(lora_rank=4))


def recorded(run: Callable[[Any], Any]) -> dict[str, Tensor]:
    """What a recorder holds after `run`, which is given it."""
    kind = first_of(
        "videonsa.models.recorder.frames:AttentionRecorder",
        "videonsa.models.recorder:AttentionRecorder",
    )
    recorder = kind()
    run(recorder)
    return {"text mass": recorder.text_mass(), "selection": recorder.selection_frequency()}


# --- Models ------------------------------------------------------------------------------------

IMAGE, VIDEO, START, END, EOS, PAD = 10, 11, 12, 13, 1, 0
LAYERS = 3
_NUDGED = re.compile(r"language_model\.layers\.0\.self_attn\.v_proj\.(base_layer\.)?bias$")
SPECS = {
    "paper": Spec(block_size=16, num_selected_blocks=3, window_size=24),
    "frame": Spec(block_size="frame", num_selected_blocks=3, window_size=24),
    "block scope": Spec(block_size="frame", num_selected_blocks=3, selection_scope="block"),
    "released": Spec.released(num_selected_blocks=2, window_size=32),
    "dense": Spec(),
}


def _config(preset: str) -> Any:
    """Heads of 64 in groups of 2 (of 7 in the released preset), as the kernels take them."""
    heads, kv_heads, layers = (28, 4, 2) if preset == "released" else (4, 2, LAYERS)
    return Config(
        nsa=SPECS[preset],
        attention="dense" if preset == "dense" else "nsa",
        text_config={
            "hidden_size": 64 * heads,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "num_hidden_layers": layers,
            "intermediate_size": 192,
            "vocab_size": 256,
            "bos_token_id": None,
            "eos_token_id": EOS,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [8, 12, 12],
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 2,
            "out_hidden_size": 64 * heads,
            "fullatt_block_indexes": [1],
            "window_size": 56,
            "tokens_per_second": 2,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )


@torch.no_grad()
def fill(model: Any) -> Any:
    """Give every parameter values that depend on its name alone, not on the order of making."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            values *= parameter[0].numel() ** -0.5
        elif name.endswith("weight"):  # of a norm
            values = 1 + values / 10
        parameter.copy_(values * 3 if "g_proj_2" in name else values)  # gates far from one half
    return model


def make_model(preset: str, *, device: torch.device, dtype: torch.dtype) -> Any:
    """A small random model that is the same in every version, in evaluation mode."""
    return fill(Model(_config(preset))).to(device=device, dtype=dtype).eval()


@torch.no_grad()
def nudge(model: Any) -> None:
    """Move one weight, a bias of the first layer's values, to the next number of its dtype."""
    (bias,) = (p for name, p in model.named_parameters() if _NUDGED.search(name))
    bias.data.view(torch.int32 if bias.dtype == torch.float32 else torch.int16)[0] += 1


# --- Prompts: arguments of `forward` on the CPU ------------------------------------------------


def text(length: int = 40) -> dict[str, Any]:
    """Text alone."""
    return {"input_ids": torch.arange(20, 20 + length)[None]}


def _pixels(frames: int, height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames * height * width, 1176, generator=generator)


def video(frames: int = 9, height: int = 8, width: int = 8, *, seed: int = 0) -> dict[str, Any]:
    """Text, a video with a temporal patch each second, a question."""
    tokens = frames * height * width // 4
    return {
        "input_ids": torch.tensor([[20, START, *[VIDEO] * tokens, END, 30 + seed, 31, 32]]),
        "pixel_values_videos": _pixels(frames, height, width, seed),
        "video_grid_thw": torch.tensor([[frames, height, width]]),
        "video_times": [tuple(float(i) for i in range(frames))],
    }


def image_and_video(*, seed: int = 7) -> dict[str, Any]:
    """Text, an image, text, a video, text."""
    clip = video(5, 4, 6, seed=seed)
    first = torch.tensor([[21, 22, START, *[IMAGE] * 12, END, 23]])
    return clip | {
        "input_ids": torch.cat([first, clip["input_ids"]], dim=1),
        "pixel_values": _pixels(1, 6, 8, seed + 1),
        "image_grid_thw": torch.tensor([[1, 6, 8]]),
    }


def _joined(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Pixels, grids and times of several samples."""
    joined: dict[str, Any] = {}
    for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        found = [sample[name] for sample in samples if name in sample]
        if found:
            joined[name] = torch.cat(found)
    times = [one for sample in samples for one in sample.get("video_times", [])]
    return joined | {"video_times": times}


def padded() -> dict[str, Any]:
    """Three samples of different lengths in one batch, padded on the left."""
    samples = [video(), image_and_video(), video(5, 8, 4, seed=1)]
    rows = [sample["input_ids"][0] for sample in samples]
    length = max(map(len, rows))
    return _joined(samples) | {
        "input_ids": torch.stack(
            [torch.nn.functional.pad(row, (length - len(row), 0), value=PAD) for row in rows]
        ),
        "attention_mask": torch.stack(
            [(torch.arange(length) >= length - len(row)).long() for row in rows]
        ),
    }


def packed(*, seed: int = 0) -> dict[str, Any]:
    """Samples behind one another in one row: with a video, an image, neither; of one token."""
    one_token = {"input_ids": torch.tensor([[50]])}
    samples = [
        video(5, seed=seed),
        text(11),
        image_and_video(seed=seed + 7),
        one_token,
        video(7, 8, 4, seed=seed + 2),
    ]
    lengths = torch.tensor([0, *(sample["input_ids"].shape[1] for sample in samples)])
    return _joined(samples) | {
        "input_ids": torch.cat([sample["input_ids"] for sample in samples], dim=1),
        "cu_seqlens": lengths.cumsum(0).int(),
    }


def labelled(prompt: dict[str, Any]) -> dict[str, Any]:
    """The prompt with labels at its text."""
    ids = prompt["input_ids"]
    without = (ids == VIDEO) | (ids == IMAGE) | (ids == PAD)
    return prompt | {"labels": ids.masked_fill(without, -100)}


def on(device: torch.device, prompt: dict[str, Any]) -> dict[str, Any]:
    """The prompt with its tensors on a device."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in prompt.items()}
