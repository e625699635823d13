"""Whether measurements may stand side by side."""

from collections.abc import Mapping
from typing import Any

import torch

from videonsa.errors import UsageError
from videonsa.machine import device_name


def check_one(one: Mapping[str, Any], *, device: torch.device, **wanted: object) -> None:
    """Refuse a result that the times of several processes cannot be compared with.

    Args:
        one: the result of one process.
        device: of this process.
        wanted: what its fields have to be.

    Raises:
        UsageError: naming the first that is not.
    """
    found = {key: one.get(key) for key in wanted}
    found["device"] = one.get("machine", {}).get("device")
    for key, value in {**wanted, "device": device_name(device)}.items():
        if found[key] != value:
            raise UsageError(
                f"--one: its {key} is {found[key]!r}, not {value!r}: want what this command wrote "
                "with one process of the same model on the same device"
            )


def comparable(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Numbers of both machines may stand in one file: all is the same but the day and the commit.

    The digest of the sources stands for what of a commit matters.
    """
    free = {"date": None, "commit": None, "dirty": None}
    return {**one, **free} == {**other, **free}
