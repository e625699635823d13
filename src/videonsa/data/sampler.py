"""The order of training: packs by seed and epoch, dealt to ranks, resumable to the sample."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch.utils.data import Sampler

from videonsa.data.draws import Draws
from videonsa.data.packing import Packing, pack_equal_samples, pack_samples
from videonsa.data.shapes import Shapes
from videonsa.data.steps import StepPlan, pack_steps, plan_steps
from videonsa.errors import UsageError


class Pack(NamedTuple):
    """Samples that share a sequence."""

    epoch: int
    number: int
    """Where it stands in its epoch, counted over all ranks."""
    samples: tuple[int, ...]


class PackSampler(Sampler[Pack]):
    """The packs of one rank that are still to come in this epoch.

    Packs are dealt to the ranks in turn. If they do not divide evenly among ranks, the first packs
    of the epoch are repeated at its end, so that all ranks take equally many steps.

    Iterating does not advance the sampler: `advance` records that every rank has had a pack, and
    begins the next epoch at the end of one. What is still to come depends on that alone, not on how
    many ranks or workers there were before.

    Args:
        lengths: tokens of each sample.
        max_tokens: most tokens of a pack.
        seed: of the order.
        data_hash: names the data, so that a state is not used with other data.
        shapes: of the samples, for packs of equal shape; None: packs of any samples.
        batch_size: samples of a step, a multiple of `world_size`: packs then come in steps of
            `step.packs`, with as many samples in each step. None: packs as full as can be.
        draws: which samples an epoch has; None: each once.
        rank: of this process.
        world_size: ranks there are.

    Raises:
        UsageError: no sample, samples that do not fit, or a rank that is not one.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        max_tokens: int,
        seed: int = 0,
        data_hash: str = "",
        shapes: Shapes | None = None,
        batch_size: int | None = None,
        draws: Draws | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise UsageError(f"rank={rank} of world_size={world_size}: want 0 <= rank < world_size")
        if not len(lengths):
            raise UsageError("no sample to train on: want a manifest that keeps some")
        self.lengths = [int(length) for length in lengths]
        self.max_tokens = max_tokens
        self.seed = seed
        self.data_hash = data_hash
        self.shapes = shapes
        self.batch_size = batch_size
        self.draws = draws
        self.rank = rank
        self.world_size = world_size
        self._epoch = 0
        self._packs_done = 0
        self.step: StepPlan | None = self._plan()
        """How many samples and packs a step has; None without `batch_size`."""
        self._packing = self._packing_of(epoch=0, step=self.step)

    @property
    def num_samples(self) -> int:
        """Of an epoch."""
        return sum(self.draws.counts.values()) if self.draws else len(self.lengths)

    @property
    def epoch(self) -> int:
        """The epoch that the next pack belongs to."""
        return self._epoch

    @property
    def packs_done(self) -> int:
        """Packs of this epoch that are done, of all ranks together."""
        return self._packs_done

    @property
    def packing(self) -> Packing:
        """The packs of this epoch."""
        return self._packing

    @property
    def note(self) -> str:
        """What is repeated or left out in this epoch, in words; empty where nothing is."""
        return "; ".join(filter(None, (self.draws.note if self.draws else "", self._filling)))

    @property
    def _filling(self) -> str:
        """What a fixed number of samples costs."""
        if self.step is not None:
            return (
                f"{len(self._packing.packs) // self.step.packs} steps of {self.step.samples} "
                f"samples in {self.step.packs} sequences, filled with "
                f"{self._packing.num_repeated} samples a second time"
            )
        if self.shapes is None:
            return ""
        unshaped = int((self.shapes.of_rows < 0).sum())
        others = f"; {unshaped} samples without one video alone are packed as they are"
        return (
            f"packs of {len(self.shapes.shapes)} equal shapes, filled with "
            f"{self._packing.num_repeated} samples a second time{others if unshaped else ''}"
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What this epoch has, for the record of a run."""
        return {
            "samples": self.num_samples,
            "sequences": len(self._packing.packs),
            "repeated": self._packing.num_repeated,
            "samples_a_step": None if self.step is None else self.step.samples,
            "sequences_a_step": None if self.step is None else self.step.packs,
            "by_source": None if self.draws is None else self.draws.counts,
        }

    def __len__(self) -> int:
        """Packs of this rank that are still to come in this epoch."""
        left = len(self._packing.packs) - self._packs_done
        return -(-left // self.world_size)

    def __iter__(self) -> Iterator[Pack]:
        """The packs of this rank that are still to come in this epoch."""
        # Computed once: workers read ahead of the packs that are done.
        epoch, done, packs, left = self._epoch, self._packs_done, self._packing.packs, len(self)
        for number in range(done + self.rank, done + left * self.world_size, self.world_size):
            yield Pack(epoch, number, packs[number % len(packs)])

    def advance(self) -> None:
        """Every rank has had one more pack."""
        self._packs_done += self.world_size
        if self._packs_done >= len(self._packing.packs):
            self._epoch += 1
            self._packs_done = 0
            self._packing = self._packing_of(epoch=self._epoch, step=self.step)

    def samples_done(self) -> list[int]:
        """The samples of this epoch that are done, in the order in which they were."""
        done = self._packing.packs[: self._packs_done]
        return [sample for pack in done for sample in pack]

    def state_dict(self) -> dict[str, Any]:
        """Which samples are done: those of the first `packs_done` packs of the epoch's order."""
        return self._identity() | {
            "epoch": self._epoch,
            "packs_done": self._packs_done,
            "packs_a_step": None if self.step is None else self.step.packs,
            "samples_a_step": None if self.step is None else self.step.samples,
            "order": _digest(self._packing),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where the state was taken.

        Another number of ranks may divide steps into another number of packs: a state after whole
        steps resumes all the same.

        Raises:
            UsageError: a state of other data, another seed or another length of packs.
        """
        for name, own in self._identity().items():
            if state[name] != own:
                raise UsageError(
                    f"the state to resume from has {name}={state[name]!r}, this run {own!r}: want "
                    "the same data, seed and max_tokens; or begin anew without the state"
                )
        epoch, done, packs_then = state["epoch"], state["packs_done"], state["packs_a_step"]
        step = self._plan(packs=packs_then)
        if step is not None and step.samples != state["samples_a_step"]:
            raise UsageError(
                f"the state to resume from is of steps of {state['samples_a_step']} samples, over "
                f"{self.world_size} ranks they have {step.samples}: want as many ranks as then"
            )
        packing = self._packing_of(epoch=epoch, step=step)
        if _digest(packing) != state["order"]:
            raise UsageError(
                "the state to resume from is of packs in another order, though of the same data: "
                "it was written by another version; begin anew without it"
            )
        if self.step is not None and self.step.packs != packs_then:
            if done % packs_then:
                raise UsageError(
                    f"the state to resume from was taken within a step of {packs_then} sequences, "
                    f"this run has steps of {self.step.packs}: want one taken after a whole step"
                )
            done = done // packs_then * self.step.packs
            packing = self._packing_of(epoch=epoch, step=self.step)
        self._epoch, self._packs_done, self._packing = epoch, done, packing

    def _plan(self, *, packs: int | None = None) -> StepPlan | None:
        if self.batch_size is None:
            return None
        return plan_steps(
            self.lengths,
            drawn=self.draws.at_most if self.draws else range(len(self.lengths)),
            num_drawn=self.num_samples,
            batch_size=self.batch_size,
            max_tokens=self.max_tokens,
            ranks=self.world_size,
            packs=packs,
        )

    def _packing_of(self, *, epoch: int, step: StepPlan | None) -> Packing:
        order: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "epoch": epoch,
            "drawn": self.draws.of_epoch(epoch) if self.draws else range(len(self.lengths)),
        }
        if step is not None:
            return pack_steps(self.lengths, step, **order)
        if self.shapes is None:
            return pack_samples(self.lengths, **order)
        return pack_equal_samples(
            self.lengths,
            shapes=self.shapes.of_rows.tolist(),
            sizes=self.shapes.pack_sizes,
            **order,
        )

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "data_hash": self.data_hash,
            "shapes": "any" if self.shapes is None else "equal",
            "batch_size": self.batch_size,
            "weights": self.draws.weights if self.draws else {},
        }


def _digest(packing: Packing) -> str:
    return hashlib.sha256(json.dumps(packing.packs).encode()).hexdigest()
