"""The cases of the comparison: settings of a call, and what of it is compared."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.same_outputs.models import (
    KEPT,
    LAYERS,
    PAD,
    SHARED_BY,
    SPECS,
    VIDEO,
    Cache,
    attend_by,
    attending,
    context_parallel,
    fill,
    image_and_video,
    labelled,
    make_model,
    nudge,
    on,
    packed,
    padded,
    recorded,
    text,
    video,
    with_backend,
    with_lora,
)

Found = dict[str, Tensor]
"""What is compared, by name."""
Prompt = Callable[[], dict[str, Any]]
"""Makes the arguments of `forward`."""
_GENERATIONS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "greedy without a cache": {"do_sample": False, "use_cache": False},
    "3 beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampled": {"do_sample": True, "temperature": 2.0},
}
_GENERATED = {"max_new_tokens": 8, "pad_token_id": PAD, "eos_token_id": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where and in what a case runs."""

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    nudged: bool = False
    """Whether one weight of each model is off by the least that it can be: so outputs differ."""

    backend: str = "auto"
    """Of NSA."""

    def prompt(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `forward` as they are passed here."""
        return on(self.device, arguments) | with_backend(self.backend)

    def model(self, preset: str, dtype: torch.dtype | None = None) -> Any:
        """A model of this place, in its dtype unless another is given."""
        model = make_model(preset, device=self.device, dtype=dtype or self.dtype)
        attend_by(model, self.backend)
        if self.nudged:
            nudge(model)
        return model


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One setting."""

    run: Callable[[Place], Found]
    processes: int = 1
    packages: tuple[str, ...] = ()
    """That it needs beside those of every installation."""
    since: str = ""
    """The commit to compare with in place of an older one; from it on the outputs stay."""
    reason: str = ""
    """What that commit changed on purpose."""
    must_differ: bool = False


# --- What cases are made of --------------------------------------------------------------------


def _gradients(model: Any) -> Found:
    """Of all parameters that have one; of sharded ones the shard of this process."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            found[f"gradient of {name}"] = grad.to_local() if hasattr(grad, "to_local") else grad
    return found


def _rows(cache: Any, when: str) -> Found:
    return {
        f"{what} of layer {i} {when}": getattr(layer, what)
        for i, layer in enumerate(cache.layers)
        for what in ("keys", "values")
    }


def _trained(model: Any, prompt: dict[str, Any], **options: Any) -> Found:
    """Loss, logits and gradients of one step."""
    out = model(**prompt, use_cache=False, **options)
    out.loss.backward()
    logits = {} if out.logits is None else {"logits": out.logits}
    hidden = {f"hidden states {i}": rows for i, rows in enumerate(out.hidden_states or ())}
    return {"loss": out.loss} | logits | hidden | _gradients(model)


@torch.inference_mode()
def _continued(model: Any, prompt: dict[str, Any], *, turn: bool = True, **options: Any) -> Found:
    """Logits and cache of a prefill, of tokens after it, and of a second turn with a video."""
    cache, place = Cache(), prompt["input_ids"].device
    lasting = {"past_key_values": cache}
    lasting |= {key: prompt[key] for key in KEPT if key in prompt}
    lasting |= {key: options.pop(key) for key in KEPT if key in options}
    out = model(**prompt | lasting, **options)
    found = {"logits": out.logits} | _rows(cache, "after the prefill")
    batch = len(prompt["input_ids"])
    for step in range(3):
        token = torch.full((batch, 1), 40 + step, device=place)
        found[f"logits of token {step}"] = model(token, **lasting).logits
    if turn:
        later = on(place, video(4, 4, 6, seed=3))
        out = model(**later, **lasting, **options)
        found["logits of the second turn"] = out.logits
    return found | _rows(cache, "at the end")


def _plain(place: Place, preset: str, make: Prompt, **options: Any) -> Found:
    prompt = place.prompt(labelled(make()))
    return _trained(place.model(preset), prompt, output_hidden_states=True, **options)


def _packed(place: Place, preset: str, **options: Any) -> Found:
    return _trained(place.model(preset), place.prompt(labelled(packed())), **options)


def _decoded(place: Place, preset: str, make: Prompt, **options: Any) -> Found:
    return _continued(place.model(preset), place.prompt(make()), **options)


def _positions_given() -> dict[str, Any]:
    ids = torch.arange(video()["input_ids"].shape[1]).expand(3, 1, -1)
    steps = torch.tensor([1, 2, 3])[:, None, None]
    return video() | {"position_ids": ids // steps}


def _times_off_zero() -> dict[str, Any]:
    """4.1 s - 0.1 s is a hair below 4 s in floating point."""
    return video() | {"video_times": [tuple(0.1 + i for i in range(9))]}


def _seconds_per_grid() -> dict[str, Any]:
    prompt = video() | {"second_per_grid_ts": torch.tensor([0.5])}
    del prompt["video_times"]
    return prompt


@torch.inference_mode()
def _frames(place: Place) -> Found:
    """Frames through the tower in two parts, and the prompt with their features."""
    model = place.model("frame")
    generator = torch.Generator().manual_seed(5)
    frames = torch.randint(0, 256, (10, 3, 112, 112), generator=generator, dtype=torch.uint8)
    features = model.encode_frames([frames[:6].to(place.device), frames[6:].to(place.device)])
    ids = torch.tensor([[20, 12, *[VIDEO] * len(features), 13, 30]], device=place.device)
    out = model(
        ids,
        inputs_embeds=model.embed_prompt(ids, video_features=features),
        video_grid_thw=torch.tensor([[5, 8, 8]], device=place.device),
        video_times=[(0.0, 1.0, 2.0, 3.0, 4.0)],
        logits_to_keep=2,
        **with_backend(place.backend),
    )
    return {"features": features, "logits": out.logits}


def _checkpointed(place: Place, preset: str, make: Prompt) -> Found:
    model = place.model(preset).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return _trained(model, place.prompt(labelled(make())))


def _lora(place: Place, preset: str) -> Found:
    model = fill(with_lora(replace(place, nudged=False).model(preset))).train()
    if place.nudged:
        nudge(model)
    return _trained(model, place.prompt(labelled(packed())), loss_only=True)


def _device_map(place: Place, preset: str) -> Found:
    """Two GPUs; of one, a layer waits on the CPU; on a CPU, a layer waits on the disk."""
    from accelerate import dispatch_model

    first, second = "cpu", "disk"
    if place.device.type == "cuda":
        first, second = "cuda:0", "cuda:1" if torch.cuda.device_count() > 1 else "cpu"
    text_model = "model.language_model"
    parts = ["model.visual", "lm_head"]
    parts += [f"{text_model}.{part}" for part in ("embed_tokens", "norm", "rotary_emb")]
    parts += [f"{text_model}.layers.{i}" for i in range(LAYERS)]
    devices = dict.fromkeys(parts, first) | {f"{text_model}.layers.1": second}
    with tempfile.TemporaryDirectory() as folder:
        model = dispatch_model(
            place.model(preset),
            device_map=devices,
            main_device=first,
            offload_dir=folder,
            skip_keys="past_key_values",
        )
        return _continued(model, place.prompt(padded()), turn=False)


def _recorded(place: Place, preset: str) -> Found:
    model, prompt = place.model(preset), place.prompt(image_and_video())
    options = {"do_sample": False, **_GENERATED}
    return recorded(lambda recorder: model.generate(**prompt, recorder=recorder, **options))


def _generated(place: Place, make: Prompt, **options: Any) -> Found:
    model = place.model("frame")
    torch.manual_seed(3)
    told = {"return_dict_in_generate": True, "output_logits": True}
    out = model.generate(**place.prompt(make()), **_GENERATED, **told, **options)
    return {"ids": out.sequences, "logits": torch.stack(out.logits)}


# --- Cases of two processes --------------------------------------------------------------------


def _shared(place: Place, preset: str, make: Prompt) -> Found:
    """Of the rows of this process: logits, the loss of all, and its shares of the gradients."""
    prompt = place.prompt(labelled(make()))
    return _trained(place.model(preset), prompt, **{SHARED_BY: context_parallel()})


def _prefilled(place: Place, preset: str, make: Prompt, **options: Any) -> Found:
    shared = {SHARED_BY: context_parallel(), "logits_to_keep": 2}
    return _continued(place.model(preset), place.prompt(make()), **shared, **options)


def _sharded(place: Place, preset: str, *, checkpoint: bool = False, shared: bool = False) -> Found:
    """FSDP2 as in training: decoder layers, then the rest; in bfloat16 by its policy."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy()
    if place.dtype == torch.bfloat16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh(place.device.type, (dist.get_world_size(),))
    model = place.model(preset, torch.float32).train()
    layers = model.model.language_model.layers
    for i in range(len(layers)):
        if checkpoint:
            layers[i] = checkpoint_wrapper(layers[i], preserve_rng_state=False)
        fully_shard(layers[i], mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    sharing = {SHARED_BY: context_parallel()} if shared else {}
    prompt = place.prompt(labelled(packed(seed=0 if shared else 20 * place.rank)))
    return _trained(model, prompt, loss_only=True, **sharing)


def _of_presets() -> Iterator[tuple[str, Case]]:
    """What every way to attend has."""
    prompts: dict[str, Prompt] = {
        "text": text,
        "video": video,
        "image and video": image_and_video,
        "padded": padded,
    }
    for preset in ("paper", "frame", "dense"):
        for name, make in prompts.items():
            yield f"plain/{preset}/{name}", Case(run=partial(_plain, preset=preset, make=make))
        for name in ("video", "padded"):
            run = partial(_decoded, preset=preset, make=prompts[name], turn=name == "video")
            yield f"decode/{preset}/{name}", Case(run=run)
        run = partial(_decoded, preset=preset, make=video, rows_per_chunk=64)
        yield f"chunked/{preset}", Case(run=run)
        yield f"packed/{preset}", Case(run=partial(_packed, preset=preset))
        yield f"recorder/{preset}", Case(run=partial(_recorded, preset=preset))
    run = partial(_decoded, preset="released", make=image_and_video, turn=False)
    yield "plain/released", Case(run=partial(_plain, preset="released", make=video))
    yield "decode/released", Case(run=run)
    yield "recorder/released", Case(run=partial(_recorded, preset="released"))
    yield "plain/block scope", Case(run=partial(_plain, preset="block scope", make=video))


def _of_calls() -> Iterator[tuple[str, Case]]:
    """What a single call may ask for."""
    plain = partial(_plain, preset="frame")
    no_branch = SPECS["paper"].with_options(branches=())
    yield "plain/frame/dense by call", Case(run=partial(plain, make=video, **attending()))
    yield (
        "decode/frame/spec by call without branches",
        Case(run=partial(_decoded, preset="frame", make=video, **attending(no_branch))),
    )
    yield "plain/frame/positions given", Case(run=partial(plain, make=_positions_given))
    yield "plain/frame/seconds of a grid", Case(run=partial(plain, make=_seconds_per_grid))
    yield (
        "plain/frame/times off zero",
        Case(
            run=partial(plain, make=_times_off_zero),
            since="0648b5d",
            reason="frame times are rounded before they become whole position ids",
        ),
    )
    yield "packed/frame/loss alone", Case(run=partial(_packed, preset="frame", loss_only=True))
    yield "frames and features", Case(run=_frames)
    for name, options in _GENERATIONS.items():
        yield f"generate/{name}", Case(run=partial(_generated, make=padded, **options))


def _of_wrapped_models() -> Iterator[tuple[str, Case]]:
    """Models in which other packages have a hand."""
    for preset in ("frame", "dense"):
        run = partial(_checkpointed, preset=preset, make=packed)
        yield f"gradient checkpointing/{preset}", Case(run=run)
        run = partial(_lora, preset=preset)
        yield f"LoRA/{preset}", Case(run=run, packages=("peft",))
        run = partial(_device_map, preset=preset)
        yield f"device map/{preset}", Case(run=run, packages=("accelerate",))


def _of_two_processes() -> Iterator[tuple[str, Case]]:
    for preset in ("paper", "frame", "dense"):
        for name, make in (("one sample", video), ("packed", packed)):
            run = partial(_shared, preset=preset, make=make)
            yield f"context parallel/{preset}/{name}", Case(run=run, processes=2)
        for name, chunk in (("whole", 0), ("in chunks", 24)):
            run = partial(_prefilled, preset=preset, make=image_and_video, rows_per_chunk=chunk)
            yield f"shared prefill/{preset}/{name}", Case(run=run, processes=2)
    yield "FSDP2/frame", Case(run=partial(_sharded, preset="frame"), processes=2)
    yield "FSDP2/dense", Case(run=partial(_sharded, preset="dense"), processes=2)
    run = partial(_sharded, preset="frame", checkpoint=True)
    yield "FSDP2/frame/activation checkpointing", Case(run=run, processes=2)
    run = partial(_sharded, preset="frame", shared=True)
    yield "FSDP2/frame/context parallel", Case(run=run, processes=2)


_CONTROL = Case(run=partial(_plain, preset="frame", make=video), must_differ=True)
CASES = {
    **dict(_of_presets()),
    **dict(_of_calls()),
    **dict(_of_wrapped_models()),
    **dict(_of_two_processes()),
    "control/one weight nudged": _CONTROL,
}
