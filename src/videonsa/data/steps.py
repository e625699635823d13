"""Steps of equally many samples, packed into equally many sequences: batches as papers count them.

A step has to take the same number of sequences whatever its samples are, because every rank
computes equally many of them. The longest samples of the data decide how many: where those fit, all
others do.
"""

import random
from collections.abc import Sequence
from itertools import cycle, islice
from typing import NamedTuple

from videonsa.data.packing import Packing, check_lengths, shuffled


class StepPlan(NamedTuple):
    """What all steps of a run have in common."""

    samples: int
    """In a step."""
    packs: int
    """Sequences of a step, over all ranks."""
    slots: tuple[tuple[int, ...], ...]
    """For each sequence, places by length (0: the longest) of samples that fit it in any step."""


def plan_steps(
    lengths: Sequence[int],
    *,
    drawn: Sequence[int],
    num_drawn: int,
    batch_size: int,
    max_tokens: int,
    ranks: int,
    packs: int | None = None,
) -> StepPlan:
    """Choose as few sequences a step as always suffice.

    Args:
        lengths: tokens of each sample.
        drawn: every sample, as often as an epoch may have it.
        num_drawn: samples of an epoch.
        batch_size: most samples of a step, a multiple of `ranks`. Steps of an epoch have equally
            many, so of little data fewer.
        max_tokens: most tokens of a sequence.
        ranks: processes that have sequences of their own; they share a step evenly.
        packs: sequences of a step, where another run has chosen them. Default: chosen.
    """
    steps = -(-num_drawn // batch_size)
    samples = -(-num_drawn // (steps * ranks)) * ranks
    longest = sorted((lengths[sample] for sample in drawn), reverse=True)[:samples]
    longest += longest[: samples - len(longest)] * samples  # a step may hold all of them again
    longest = sorted(longest[:samples], reverse=True)
    fewest = -(-sum(longest) // (max_tokens * ranks)) * ranks
    for count in range(fewest, samples, ranks) if packs is None else [packs]:
        slots = _balanced(longest, count)
        if max(sum(longest[place] for place in slot) for slot in slots) <= max_tokens:
            return StepPlan(samples, count, slots)
    return StepPlan(samples, samples, tuple((place,) for place in range(samples)))


def pack_steps(
    lengths: Sequence[int],
    plan: StepPlan,
    *,
    drawn: Sequence[int],
    max_tokens: int,
    seed: int,
    epoch: int = 0,
) -> Packing:
    """Cut the shuffled samples of an epoch into steps, and each step into sequences.

    The last step of an epoch is filled with the first samples of the epoch. Within a step the
    sequences are of similar length, so that ranks wait little for each other.

    Args:
        lengths: tokens of each sample.
        plan: by `plan_steps`, for the same data.
        drawn: the samples of the epoch.
        max_tokens: most tokens of a sequence.
        seed: of the order.
        epoch: each has another order.

    Raises:
        UsageError: samples longer than a sequence, or without a token.
    """
    check_lengths(lengths, max_tokens)
    rng = random.Random(f"{seed}/{epoch}")
    order = [drawn[place] for place in shuffled(len(drawn), rng)]
    steps = -(-len(order) // plan.samples)
    samples = list(islice(cycle(order), steps * plan.samples))
    packs: list[tuple[int, ...]] = []
    for first in range(0, len(samples), plan.samples):
        step = sorted(
            samples[first : first + plan.samples], key=lambda sample: (-lengths[sample], sample)
        )
        even = _balanced([lengths[sample] for sample in step], plan.packs)
        fits = all(sum(lengths[step[place]] for place in slot) <= max_tokens for slot in even)
        packs += [tuple(step[place] for place in slot) for slot in (even if fits else plan.slots)]
    return Packing(
        packs=tuple(packs),
        num_tokens=sum(lengths[sample] for sample in samples),
        max_tokens=max_tokens,
        num_repeated=len(samples) - len(order),
    )


def _balanced(lengths: Sequence[int], count: int) -> tuple[tuple[int, ...], ...]:
    """Each sample, the longest first, into the pack with the fewest tokens."""
    slots: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for place, length in enumerate(lengths):
        emptiest = min(range(count), key=tokens.__getitem__)
        slots[emptiest].append(place)
        tokens[emptiest] += length
    return tuple(map(tuple, slots))
