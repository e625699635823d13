"""`videonsa doctor`: what is installed, what works, what is missing and what fixes it."""

import importlib
import platform
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import videonsa
from videonsa import env
from videonsa.cli.common import (
    DEFAULT_MODEL,
    Commands,
    add_command,
    emit,
    emit_json,
    quiet_libraries,
)
from videonsa.cli.compiling import compile_line
from videonsa.errors import UsageError

DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "gif")
"""Codecs that a video is likely to have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing looked at. "missing" is needed; "optional" is missing and not needed."""

    name: str
    status: Literal["ok", "optional", "missing"]
    detail: str
    fix: str = ""


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "doctor",
        run=run,
        summary="Show versions, devices, backends and codecs: what works, what is missing and how "
        "to install it. Exit status 2 if something required is missing.",
        examples=(
            "videonsa doctor",
            "videonsa doctor --json",
            "videonsa doctor --compile --model Enxin/VideoNSA",
        ),
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="instead, compile the GPU kernels that questions to a model use, for the GPU of this "
        "machine; otherwise the first question does",
    )
    parser.add_argument(
        "--model",
        metavar="ID_OR_PATH",
        help=f"for --compile: as in other commands; its weights are not read (default: "
        f"{DEFAULT_MODEL})",
    )


def run(args: Namespace) -> int:
    """Run the command."""
    if args.compile:
        return _compile(args)
    if args.model is not None:
        raise UsageError("--model without --compile: it says for which model to compile")
    with quiet_libraries(debug=args.debug):
        checks = list(examine())
    if args.json:
        emit_json({"checks": [asdict(check) for check in checks], "variables": env.variables()})
    else:
        for check in checks:
            fix = f"  (fix: {check.fix})" if check.fix else ""
            emit(f"{check.status:<9} {check.name:<15} {check.detail}{fix}\n")
        for name, value in env.variables().items():
            emit(f"{'set':<9} {name} = {value}\n")
    return 2 if any(check.status == "missing" for check in checks) else 0


def _compile(args: Namespace) -> int:
    """Compile kernels for a model of one layer and random weights of the shape that is asked for.

    Raises:
        UsageError: no GPU, or one that cannot run the kernels.
    """
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            "--compile: there is no GPU in this machine; run it on the machine that has one"
        )
    with quiet_libraries(debug=args.debug):
        from videonsa.bench.random_model import one_layer_model
        from videonsa.inference.warm_up import warm_up
        from videonsa.models.shape import load_shape

        name = args.model or DEFAULT_MODEL
        model = one_layer_model(load_shape(name), device=torch.device("cuda"))
        with compile_line():
            done = warm_up(model)
        gpu = torch.cuda.get_device_name(model.device)
    if args.json:
        emit_json({"model": name, "gpu": gpu, **asdict(done)})
    elif done.kernels:
        emit(f"compiled {done.kernels} kernels of {name} for {gpu} in {done.seconds:.1f} s\n")
    else:
        emit(f"already compiled: the kernels of {name} for {gpu}\n")
    return 0


def examine() -> Iterator[Check]:
    """Every check, none of which raises."""
    yield Check(name="videonsa", status="ok", detail=videonsa.__version__)
    yield Check(
        name="python",
        status="ok",
        detail=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    )
    for package in ("torch", "transformers", "safetensors", "numpy", "av", "PIL", "tqdm"):
        yield _package(package)
    for examiner in (_triton, _torchvision, _devices, _backends, _codecs, _embedded):
        yield _guarded(examiner)


def _package(module: str) -> Check:
    distribution = "pillow" if module == "PIL" else module
    fix = f"{sys.executable} -m pip install {distribution}"
    try:
        importlib.import_module(module)
        return Check(name=distribution, status="ok", detail=version(distribution))
    except (ImportError, PackageNotFoundError, OSError) as error:
        detail = f"cannot be imported ({_one_line(error)})"
        return Check(name=distribution, status="missing", detail=detail, fix=fix)


def _guarded(examiner: Callable[[], Check]) -> Check:
    name = examiner.__name__.removeprefix("_")
    try:
        return examiner()
    except Exception as error:  # a broken install must not hide the other checks
        detail = f"{type(error).__name__}: {_one_line(error)}"
        return Check(name=name, status="missing", detail=detail, fix="mend what stands above")


def _triton() -> Check:
    try:
        return Check(name="triton", status="ok", detail=version("triton"))
    except PackageNotFoundError:
        return Check(
            name="triton", status="optional", detail="not installed: only GPU kernels use it"
        )


def _torchvision() -> Check:
    """A torchvision beside a torch of another build breaks transformers' imports."""
    try:
        found = version("torchvision")
    except PackageNotFoundError:
        return Check(name="torchvision", status="ok", detail="not installed, and not needed")
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        return Check(
            name="torchvision",
            status="missing",
            detail=f"{found} does not fit this torch ({_one_line(error)})",
            fix=f"{sys.executable} -m pip uninstall -y torchvision",
        )
    return Check(name="torchvision", status="ok", detail=f"{found}, not needed")


def _devices() -> Check:
    import torch

    threads = torch.get_num_threads()
    names = [f"cpu ({threads} {'thread' if threads == 1 else 'threads'})"]
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        names.append(f"cuda:{index} ({torch.cuda.get_device_name(index)}, {memory:.0f} GiB)")
    return Check(name="devices", status="ok", detail=", ".join(names))


def _backends() -> Check:
    """Run the attention once."""
    import torch

    from videonsa.ops.nsa import nsa_attention
    from videonsa.ops.spec import NSASpec
    from videonsa.ops.triton.support import why_not

    x = torch.zeros(1, 8, 2, 8)
    spec = NSASpec(block_size=4, num_selected_blocks=2, window_size=4)
    nsa_attention(x, x, x, torch.full((1, 8, 2, 3), 0.5), spec=spec, backend="reference")
    detail = "reference (any device)"
    if not torch.cuda.is_available():
        return Check(name="backends", status="ok", detail=f"{detail}; triton needs an NVIDIA GPU")
    q = torch.zeros(1, 64, 2, 16, dtype=torch.bfloat16, device="cuda")
    reason = why_not(q, q, NSASpec())
    if reason is not None:
        return Check(name="backends", status="ok", detail=f"{detail}; triton: {reason}")
    gates = torch.full((1, 64, 2, 3), 0.5, device="cuda")
    nsa_attention(q, q, q, gates, spec=NSASpec(), backend="triton")
    return Check(name="backends", status="ok", detail=f"{detail}, triton (kernels)")


def _codecs() -> Check:
    import av

    absent = [name for name in DECODERS if name not in av.codecs_available]
    if absent:
        return Check(
            name="codecs",
            status="optional",
            detail=f"PyAV cannot decode {', '.join(absent)}",
            fix=f"{sys.executable} -m pip install --force-reinstall --only-binary av av",
        )
    return Check(name="codecs", status="ok", detail=", ".join(DECODERS))


def _embedded() -> Check:
    from videonsa.errors import ModelError
    from videonsa.models.locate import EMBEDDED, locate_model
    from videonsa.models.shape import load_shape

    try:
        where, shape = locate_model(EMBEDDED), load_shape(EMBEDDED)
    except ModelError as error:
        return Check(
            name="embedded model",
            status="missing",
            detail=_one_line(error),
            fix=f"{sys.executable} -m pip install --force-reinstall videonsa",
        )
    detail = f"{shape.num_parameters / 1e6:.1f} M parameters in {where}"
    return Check(name="embedded model", status="ok", detail=detail)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
