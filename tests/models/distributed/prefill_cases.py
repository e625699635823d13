"""Prefills that processes share, as cases of `test_sharded`."""

import torch
from tiny_models import END, SPEC, START, VIDEO, prompt, tiny, video

from videonsa.models.cache import VideoNSACache
from videonsa.models.methods import NSA, Dense
from videonsa.ops.spec import NSASpec

FIXED = NSASpec(block_size=5, num_selected_blocks=2, window_size=7)
DECODED = 3


def several_videos():
    """Text, a video, text, a video of other frames, a question."""
    first, second = video(5, 4, 6), video(4, 4, 4, seed=1)
    runs = [[20, START, *[VIDEO] * 30, END, 21, 22], [START, *[VIDEO] * 16, END, 30, 31, 32]]
    return {
        "input_ids": torch.tensor([[token for run in runs for token in run]]),
        "pixel_values_videos": torch.cat([one["pixel_values_videos"] for one in (first, second)]),
        "video_grid_thw": torch.cat([one["video_grid_thw"] for one in (first, second)]),
        "video_times": [*first["video_times"], *second["video_times"]],
    }


def one_video():
    return prompt(9, 4, 6)


def text_only():
    return {"input_ids": torch.arange(20, 40)[None]}


def fewer_rows_than_stretches():
    return {"input_ids": torch.tensor([[20, 21, 22]])}


PREFILLS = {
    "one video, frames": (one_video, SPEC, "nsa", {}),
    "one video, fixed blocks": (one_video, FIXED, "nsa", {}),
    "several videos, frames": (several_videos, SPEC, "nsa", {}),
    "several videos, fixed blocks, in chunks": (
        several_videos,
        FIXED,
        "nsa",
        {"rows_per_chunk": 3},
    ),
    "several videos, frames, in chunks": (several_videos, SPEC, "nsa", {"rows_per_chunk": 4}),
    "several videos, dense": (several_videos, SPEC, "dense", {}),
    "one video, dense, in chunks": (one_video, SPEC, "dense", {"rows_per_chunk": 5}),
    "every process its share at once": (one_video, FIXED, "nsa", {"rows_per_chunk": 0}),
    "only text": (text_only, SPEC, "nsa", {}),
    "too short to share": (fewer_rows_than_stretches, SPEC, "nsa", {}),
}


@torch.inference_mode()
def prefill(name, cp_group=None, *, device="cpu"):
    """What a prefill of a case leaves: logits, the cache, the tokens after it and a second turn."""
    make, spec, attention, options = PREFILLS[name]
    model = tiny(spec=spec).to(device)
    cache = VideoNSACache()
    method = Dense() if attention == "dense" else NSA(spec, backend="reference")
    arguments = {"past_key_values": cache, "method": method}
    shared = {"cp_group": cp_group, **options} if cp_group is not None else {}
    logits = model(**on(device, make()), **arguments, **shared, logits_to_keep=2).logits
    found = {"logits": logits} | _contents(cache)
    found["tokens"] = []
    for _ in range(DECODED):
        found["tokens"].append(int(logits[0, -1].argmax()))
        token = torch.tensor([found["tokens"][-1:]], device=device)
        logits = model(token, **arguments).logits
    later = model(**on(device, prompt(4)), **arguments, **shared, logits_to_keep=1).logits
    found |= {"later": later} | {f"later {k}": v for k, v in _contents(cache).items()}
    return on("cpu", found)


def on(device, values):
    """A dict with its tensors on a device."""
    return {k: x.to(device) if isinstance(x, torch.Tensor) else x for k, x in values.items()}


def _contents(cache):
    return {
        "keys": torch.stack([layer.keys for layer in cache.layers]),
        "values": torch.stack([layer.values for layer in cache.layers]),
        "vision_mask": cache.tokens.vision_mask.clone(),
        "next_positions": cache.tokens.next_positions.clone(),
        "frame_sizes": [list(sizes) for sizes in cache.tokens.frame_sizes],
    }


def generated(cp_group=None, *, device="cpu"):
    """Tokens of `generate`, which passes on what it is given."""
    model = tiny(spec=SPEC).to(device)
    shared = {} if cp_group is None else {"cp_group": cp_group}
    inputs = on(device, one_video())
    return model.generate(**inputs, **shared, max_new_tokens=4, do_sample=False).cpu()
