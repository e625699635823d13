"""The cases of `same_outputs.py`, and the process that runs them with the code of one version.

    python benchmarks/same_outputs_cases.py --source SRC --out FOLDER --cases NAME,NAME

It is started by `same_outputs.py`, with SRC in PYTHONPATH. What a case gives is written to
FOLDER/NAME.RANK.safetensors; why it was not run, or what it raised, to FOLDER/NAME.RANK.json.
"""

import argparse
import importlib.util
import json
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from same_outputs_models import (
    LAYERS,
    PAD,
    SHARED_BY,
    SPECS,
    VIDEO,
    Cache,
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
    with_lora,
)
from torch import Tensor

Found = dict[str, Tensor]
"""What is compared, by name."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TIMEOUT = timedelta(minutes=2)
_GENERATED = {"max_new_tokens": 8, "pad_token_id": PAD, "eos_token_id": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where and in what a case runs."""

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    nudged: bool = False
    """Whether one weight of each model is off by the least that it can be: so outputs differ."""

    def model(self, preset: str, dtype: torch.dtype | None = None) -> Any:
        """A model of this place, in its dtype unless another is given."""
        model = make_model(preset, device=self.device, dtype=dtype or self.dtype)
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
    hidden = dict(enumerate(out.hidden_states or ()))
    named = {f"hidden states {i}": states for i, states in hidden.items()}
    return {"loss": out.loss} | logits | named | _gradients(model)


@torch.inference_mode()
def _continued(model: Any, prompt: dict[str, Any], *, turn: bool = True, **options: Any) -> Found:
    """Logits and cache of a prefill, of tokens after it, and of a second turn with a video."""
    cache, place = Cache(), prompt["input_ids"].device
    lasting = {key: options.pop(key) for key in ("attention", "nsa_spec") if key in options}
    out = model(**prompt, past_key_values=cache, **lasting, **options)
    found = {"logits": out.logits} | _rows(cache, "after the prefill")
    batch = len(prompt["input_ids"])
    for step in range(3):
        token = torch.full((batch, 1), 40 + step, device=place)
        found[f"logits of token {step}"] = model(token, past_key_values=cache, **lasting).logits
    if turn:
        later = on(place, video(4, 4, 6, seed=3))
        found["logits of the second turn"] = model(
            **later, past_key_values=cache, **lasting, **options
        ).logits
    return found | _rows(cache, "at the end")


def _plain(place: Place, preset: str, make: Callable[[], dict[str, Any]], **options: Any) -> Found:
    prompt = on(place.device, labelled(make()))
    return _trained(place.model(preset), prompt, output_hidden_states=True, **options)


def _packed(place: Place, preset: str, **options: Any) -> Found:
    return _trained(place.model(preset), on(place.device, labelled(packed())), **options)


def _decoded(
    place: Place, preset: str, make: Callable[[], dict[str, Any]], **options: Any
) -> Found:
    return _continued(place.model(preset), on(place.device, make()), **options)


def _given_positions(place: Place) -> Found:
    prompt = video()
    ids = torch.arange(prompt["input_ids"].shape[1]).expand(3, 1, -1)
    steps = torch.tensor([1, 2, 3])[:, None, None]
    return _plain(place, "frame", lambda: prompt | {"position_ids": ids // steps})


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
    )
    return {"features": features, "logits": out.logits}


def _checkpointed(place: Place, preset: str, make: Callable[[], dict[str, Any]]) -> Found:
    model = place.model(preset).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return _trained(model, on(place.device, labelled(make())))


def _lora(place: Place, preset: str) -> Found:
    model = fill(with_lora(replace(place, nudged=False).model(preset))).train()
    if place.nudged:
        nudge(model)
    return _trained(model, on(place.device, labelled(packed())), loss_only=True)


def _device_map(place: Place, preset: str) -> Found:
    """Two GPUs; of one, a layer waits on the CPU; on a CPU, a layer waits on the disk."""
    from accelerate import dispatch_model

    first, second = ("cpu", "disk")
    if place.device.type == "cuda":
        first, second = 0, (1 if torch.cuda.device_count() > 1 else "cpu")
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
        return _continued(model, on(place.device, padded()), turn=False)


def _recorded(place: Place, preset: str) -> Found:
    model, prompt = place.model(preset), on(place.device, image_and_video())
    options = {"do_sample": False, **_GENERATED}
    return recorded(lambda recorder: model.generate(**prompt, recorder=recorder, **options))


def _generated(place: Place, make: Callable[[], dict[str, Any]], **options: Any) -> Found:
    model = place.model("frame")
    torch.manual_seed(3)
    told = {"return_dict_in_generate": True, "output_logits": True}
    out = model.generate(**on(place.device, make()), **_GENERATED, **told, **options)
    return {"ids": out.sequences, "logits": torch.stack(out.logits)}


# --- Cases of two processes --------------------------------------------------------------------


def _shared(place: Place, preset: str, make: Callable[[], dict[str, Any]]) -> Found:
    """Of the rows of this process: logits, the loss of all, and its shares of the gradients."""
    prompt = on(place.device, labelled(make()))
    return _trained(place.model(preset), prompt, **{SHARED_BY: context_parallel()})


def _prefilled(
    place: Place, preset: str, make: Callable[[], dict[str, Any]], **options: Any
) -> Found:
    shared = {SHARED_BY: context_parallel(), "logits_to_keep": 2}
    return _continued(place.model(preset), on(place.device, make()), **shared, **options)


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
    prompt = on(place.device, labelled(packed(seed=0 if shared else 20 * place.rank)))
    return _trained(model, prompt, loss_only=True, **sharing)


def _cases() -> Iterator[tuple[str, Case]]:
    """All of them, by name."""
    prompts = {"text": text, "video": video, "image and video": image_and_video, "padded": padded}
    presets = ("paper", "frame", "dense")
    for preset in presets:
        for name, make in prompts.items():
            yield f"plain/{preset}/{name}", Case(run=partial(_plain, preset=preset, make=make))
        for name in ("video", "padded"):
            run = partial(_decoded, preset=preset, make=prompts[name], turn=name == "video")
            yield f"decode/{preset}/{name}", Case(run=run)
        run = partial(_decoded, preset=preset, make=video, rows_per_chunk=64)
        yield f"chunked/{preset}", Case(run=run)
        yield f"packed/{preset}", Case(run=partial(_packed, preset=preset))
        yield f"recorder/{preset}", Case(run=partial(_recorded, preset=preset))
    yield "plain/released", Case(run=partial(_plain, preset="released", make=video))
    yield (
        "decode/released",
        Case(run=partial(_decoded, preset="released", make=image_and_video, turn=False)),
    )
    yield "recorder/released", Case(run=partial(_recorded, preset="released"))
    yield (
        "plain/block scope",
        Case(run=partial(_plain, preset="block scope", make=video)),
    )
    yield (
        "plain/frame/dense by call",
        Case(run=partial(_plain, preset="frame", make=video, attention="dense")),
    )
    yield (
        "decode/frame/spec by call without branches",
        Case(
            run=partial(
                _decoded,
                preset="frame",
                make=video,
                nsa_spec=SPECS["paper"].with_options(branches=()),
            )
        ),
    )
    yield "plain/frame/positions given", Case(run=_given_positions)
    yield (
        "plain/frame/seconds of a grid",
        Case(run=partial(_plain, preset="frame", make=_seconds_per_grid)),
    )
    yield (
        "plain/frame/times off zero",
        Case(
            run=partial(_plain, preset="frame", make=_times_off_zero),
            since="0648b5d",
            reason="frame times are rounded before they become whole position ids",
        ),
    )
    yield "frames and features", Case(run=_frames)
    yield "packed/frame/loss alone", Case(run=partial(_packed, preset="frame", loss_only=True))
    for preset in ("frame", "dense"):
        yield (
            f"gradient checkpointing/{preset}",
            Case(run=partial(_checkpointed, preset=preset, make=packed)),
        )
        yield f"LoRA/{preset}", Case(run=partial(_lora, preset=preset), packages=("peft",))
        yield (
            f"device map/{preset}",
            Case(run=partial(_device_map, preset=preset), packages=("accelerate",)),
        )
    for name, options in {
        "greedy": {"do_sample": False},
        "greedy without a cache": {"do_sample": False, "use_cache": False},
        "3 beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
        "sampled": {"do_sample": True, "temperature": 2.0},
    }.items():
        yield f"generate/{name}", Case(run=partial(_generated, make=padded, **options))
    yield from _cases_of_two()
    yield (
        "control/one weight nudged",
        Case(run=partial(_plain, preset="frame", make=video), must_differ=True),
    )


def _cases_of_two() -> Iterator[tuple[str, Case]]:
    """Those of two processes."""
    for preset in ("paper", "frame", "dense"):
        for name, make in (("one sample", video), ("packed", packed)):
            run = partial(_shared, preset=preset, make=make)
            yield f"context parallel/{preset}/{name}", Case(run=run, processes=2)
        for name, options in (("whole", {}), ("in chunks", {"rows_per_chunk": 24})):
            run = partial(_prefilled, preset=preset, make=image_and_video, **options)
            yield f"shared prefill/{preset}/{name}", Case(run=run, processes=2)
    yield "FSDP2/frame", Case(run=partial(_sharded, preset="frame"), processes=2)
    yield "FSDP2/dense", Case(run=partial(_sharded, preset="dense"), processes=2)
    yield (
        "FSDP2/frame/activation checkpointing",
        Case(run=partial(_sharded, preset="frame", checkpoint=True), processes=2),
    )
    yield (
        "FSDP2/frame/context parallel",
        Case(run=partial(_sharded, preset="frame", shared=True), processes=2),
    )


CASES = dict(_cases())


# --- The process -------------------------------------------------------------------------------


def file_name(case: str, rank: int, suffix: str) -> str:
    """Of what a process found."""
    return f"{case.replace('/', '.').replace(' ', '_')}.{rank}.{suffix}"


def _why_not(case: Case, device: torch.device) -> str | None:
    """Why a case cannot run here."""
    for package in case.packages:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    if device.type == "cuda" and torch.cuda.device_count() < case.processes:
        return f"needs {case.processes} GPUs"
    return None


def run_case(name: str, place: Place, out: Path) -> None:
    """Run a case, and write what it gives or why it gives nothing to a folder."""
    case = CASES[name]
    note = _why_not(case, place.device)
    if note is None:
        try:
            found = case.run(place)
        except Exception:  # told in the table; the other cases go on
            traceback.print_exc()
            error = traceback.format_exc().strip().splitlines()[-1]
            note = f"failed: {error[:300]}"
    if note is not None:
        text_of_note = json.dumps({"note": note})
        (out / file_name(name, place.rank, "json")).write_text(text_of_note, encoding="utf-8")
        return
    tensors = {key: x.detach().cpu().contiguous().clone() for key, x in found.items()}
    save_file(tensors, out / file_name(name, place.rank, "safetensors"))


@contextmanager
def _group(device: torch.device, rank: int, processes: int, out: Path) -> Iterator[None]:
    """One of the processes of a group."""
    if processes == 1 or (device.type == "cuda" and torch.cuda.device_count() < processes):
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = dist.FileStore(str(out / f"store_{processes}"), processes)
    dist.init_process_group(backend, store=store, rank=rank, world_size=processes, timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Run the cases that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=json.loads, required=True, help="names, a JSON list")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--nudged", type=json.loads, default=[], help="of the names, a JSON list")
    options = parser.parse_args()
    package = importlib.util.find_spec("videonsa")
    if package is None or not Path(package.origin or "").is_relative_to(options.source):
        raise SystemExit(f"videonsa is not that of {options.source}")
    torch.set_num_threads(1)
    device = torch.device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", min(options.rank, torch.cuda.device_count() - 1))
        torch.cuda.set_device(device)
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
    place = Place(
        device=device,
        dtype=DTYPES[options.dtype],
        rank=options.rank,
    )
    with _group(device, options.rank, options.processes, options.out):
        for name in options.cases:
            run_case(name, replace(place, nudged=name in options.nudged), options.out)


if __name__ == "__main__":
    main()
