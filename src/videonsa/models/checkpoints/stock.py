"""A model without gates as stock Qwen2.5-VL: its config, its processor's files, its card."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videonsa.errors import ModelError
from videonsa.models._hf import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from videonsa.models.checkpoints.checkpoint import Checkpoint
from videonsa.models.checkpoints.stored import is_gate
from videonsa.models.config import OUR_FIELDS, VideoNSAConfig
from videonsa.parsing import read_json_object
from videonsa.video.processing import RGB_MEAN, RGB_STD

CARD = "README.md"
POSITIONS = (
    "stock transformers numbers the positions of a video otherwise than this model was trained if "
    "a temporal patch is no whole number of seconds, or if the video is long; text and images are "
    f"the same ({CARD} says more)"
)
"""What is said in one line after a conversion."""
_BESIDE = {
    "tokenizer": ("tokenizer.json", "vocab.json"),
    "chat template": ("chat_template.jinja", "chat_template.json"),
    "generation config": ("generation_config.json",),
}
"""What stock readers look for beside weights and processor, and the files that may hold it."""
_CARD = """\
---
library_name: transformers
pipeline_tag: video-text-to-text
---

# A Qwen2.5-VL checkpoint

Written by `videonsa convert --to qwen2_5_vl`. It has the architecture and the names of stock
Qwen2.5-VL and needs no code but that of the reader:

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("FOLDER")
processor = AutoProcessor.from_pretrained("FOLDER")
```

`vllm serve FOLDER` takes it too. videonsa itself attends densely with it.
{gates}
## Position ids of videos

Text and images get the same position ids everywhere, and the same logits. For a video, videonsa
gives temporal patch i the temporal id floor(i * seconds per patch * {rate:g}), and text after the
video continues at the largest id so far + 1. vLLM does the same for frames that are spread evenly.
Transformers differs (seen in 5.17):

- It cuts the seconds of a temporal patch to a whole number: at 4 frames a second, 0.5 s become 0,
  and all frames get the temporal id of the first.
- Text after a video continues at the video's first id + the longer side of a frame in tokens, also
  where the video's temporal ids reach further.

So ids and logits are equal where the seconds of a patch are whole and the last temporal id is below
the longer side of a frame in tokens. For other videos pass `position_ids`, to get the logits of
videonsa.
"""
_DROPPED = """
**Gates were dropped.** The model was trained with Native Sparse Attention. Its {count} gate tensors
are left out, and dense attention takes the place of the three branches: answers change.
"""


def check_gates(checkpoint: Checkpoint, *, drop: bool) -> int:
    """The number of gate tensors that are dropped.

    Raises:
        ModelError: gates that are not to be dropped, or none that could be.
    """
    count = sum(map(is_gate, checkpoint.tensors))
    if count and not drop:
        raise ModelError(
            f"the weights in {checkpoint.folder} have gates ({count} tensors), for which stock "
            "Qwen2.5-VL has no place: leave out to='qwen2_5_vl' (--to), or pass drop_gates=True "
            "(--drop-gates), which attends densely instead and changes answers"
        )
    if drop and not count:
        raise ModelError(
            f"the weights in {checkpoint.folder} have no gates: leave out drop_gates (--drop-gates)"
        )
    return count


def stock_config(config: VideoNSAConfig) -> Qwen2_5_VLConfig:
    """The same model as transformers' own class knows it."""
    ours = {*OUR_FIELDS, "model_type", "architectures", "auto_map"}
    fields = {name: value for name, value in config.to_dict().items() if name not in ours}
    stock: Qwen2_5_VLConfig = Qwen2_5_VLConfig.from_dict(fields)
    stock.architectures = [Qwen2_5_VLForConditionalGeneration.__name__]
    return stock


def complete_stock(folder: Path, config: Qwen2_5_VLConfig, *, num_dropped: int) -> tuple[str, ...]:
    """Write the card, and what the files of the processor do not state.

    Args:
        folder: with the files that were copied from the source.
        config: of the model.
        num_dropped: gate tensors that were left out.

    Returns:
        One line each: what a reader of this folder should know.
    """
    if not (folder / "processor_config.json").exists():
        for file, kind in (
            ("preprocessor_config.json", {"image_processor_type": "Qwen2VLImageProcessor"}),
            ("video_preprocessor_config.json", {"video_processor_type": "Qwen2VLVideoProcessor"}),
        ):
            path = folder / file
            stated = read_json_object(path, error=ModelError) if path.exists() else {}
            content = json.dumps(_processing(config) | kind | stated, indent=2)
            path.write_text(content + "\n", "utf-8")
    gates = _DROPPED.format(count=num_dropped) if num_dropped else ""
    rate = config.vision_config.tokens_per_second
    (folder / CARD).write_text(_CARD.format(gates=gates, rate=rate), "utf-8")
    return tuple(_notes(folder, num_dropped))


def _processing(config: Qwen2_5_VLConfig) -> dict[str, Any]:
    """How frames become patches."""
    vision = config.vision_config
    return {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "image_mean": list(RGB_MEAN),
        "image_std": list(RGB_STD),
        "processor_class": "Qwen2_5_VLProcessor",
    }


def _notes(folder: Path, num_dropped: int) -> Iterator[str]:
    if num_dropped:
        yield f"{num_dropped} gate tensors are dropped: attention is dense, and answers change"
    for what, files in _BESIDE.items():
        if not any((folder / file).exists() for file in files) and not (
            what == "chat template" and _states_template(folder)
        ):
            yield f"the source has no {what}: stock readers want {' or '.join(files)}"
    yield POSITIONS


def _states_template(folder: Path) -> bool:
    """Whether the settings of the tokenizer hold a chat template."""
    path = folder / "tokenizer_config.json"
    return path.exists() and "chat_template" in read_json_object(path, error=ModelError)
