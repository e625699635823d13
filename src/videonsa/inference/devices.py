"""Where a model runs, and in which dtype."""

import torch

from videonsa.errors import UsageError


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; by default the first GPU, or the CPU.

    Raises:
        UsageError: a device that torch does not know or this machine lacks.

    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place).item()  # also refuses "meta", which holds no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"device {str(device)!r} is not there: want 'cpu' or a GPU such as 'cuda:0' that "
            "'videonsa doctor' lists"
        ) from error
    return place


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """The dtype asked for; by default float32 on a CPU and None, the weights' own, elsewhere.

    Raises:
        UsageError: another dtype.

    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else None
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    found = known.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise UsageError(f"dtype={str(dtype)!r}: want one of {', '.join(known)}")
    return found
