"""What a cache knows of its tokens, as named tensors, and back."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from videonsa.models.cache import CachedTokens
from videonsa.models.growing import GrowingRows
from videonsa.models.stored_cache.contents import StoredRecord

_MASKS = ("vision_mask", "attention_mask", "next_positions")


def stored_records(records: Sequence[CachedTokens]) -> tuple[StoredRecord, ...]:
    """What of them is no tensor."""
    return tuple(
        StoredRecord(
            first_layer=record.first_layer,
            is_padded=record.is_padded,
            has_places=record.places is not None,
        )
        for record in records
    )


def tensors_of(records: Sequence[CachedTokens]) -> dict[str, Tensor]:
    """What of them is tensors or lists of numbers, by the number of the record and its field."""
    found: dict[str, Tensor] = {}
    for number, record in enumerate(records):
        sizes = [size for one in record.frame_sizes for size in one]
        counts = [len(one) for one in record.frame_sizes]
        own = {name: getattr(record, name) for name in _MASKS}
        own["frame_sizes"] = torch.tensor(sizes, dtype=torch.int64)
        own["frame_counts"] = torch.tensor(counts, dtype=torch.int64)
        if record.places is not None:
            own["places"] = torch.tensor(record.places, dtype=torch.int64)
        found |= {f"{number}.{name}": tensor for name, tensor in own.items()}
    return found


def records_of(
    stored: Sequence[StoredRecord], tensors: Mapping[str, Tensor], device: torch.device
) -> list[CachedTokens]:
    """The records, with their masks on `device`."""
    found = []
    for number, facts in enumerate(stored):
        sizes = tensors[f"{number}.frame_sizes"].tolist()
        bounds = accumulate(tensors[f"{number}.frame_counts"].tolist(), initial=0)
        masks = [GrowingRows(tensors[f"{number}.{name}"].to(device)) for name in _MASKS]
        vision_rows, attention_rows, position_rows = masks
        record = CachedTokens(
            first_layer=facts.first_layer,
            frame_sizes=[sizes[first:last] for first, last in pairwise(bounds)],
            is_padded=facts.is_padded,
            places=tensors[f"{number}.places"].tolist() if facts.has_places else None,
            vision_rows=vision_rows,
            attention_rows=attention_rows,
            position_rows=position_rows,
        )
        found.append(record)
    return found
