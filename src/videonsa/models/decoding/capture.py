"""Work on tensors that do not move, captured as CUDA graphs and replayed."""

from collections.abc import Callable, Hashable
from contextlib import suppress

import torch

Work = Callable[[], None]
TURNS_TO_CAPTURE = 2
"""Runs of some work after which it is captured."""


class Graphs:
    """Runs pieces of work by their names; on a GPU each becomes a CUDA graph.

    The first time a piece runs as it is: kernels compile then, and plans of products are made. The
    second time it is captured, so that what runs once costs no capture; from then on it is
    replayed. The graphs share their memory: what outlives a piece of work is written to tensors
    from outside of it.
    """

    def __init__(self, device: torch.device, *, captures: bool) -> None:
        """Nothing is captured where `captures` is False, or on a CPU."""
        self.why_not: str | None = None
        """Why capturing failed, in one line, once it has."""
        self._device = device
        self._captures = captures and device.type == "cuda"
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        if self._captures:
            self._stream = torch.cuda.Stream(device)

    @property
    def captures(self) -> bool:
        """Whether work is captured, or will be."""
        return self._captures

    def has(self, name: Hashable) -> bool:
        """Whether this work is captured."""
        return self._graphs.get(name) is not None

    def forget(self, name: Hashable | None = None) -> None:
        """Drop a graph, or all: tensors that they know have moved."""
        if name is None:
            self._graphs = {}
        else:
            self._graphs.pop(name, None)

    def run(self, name: Hashable, work: Work, *, generator: torch.Generator | None = None) -> None:
        """Run a piece of work, on the current stream as far as others can tell.

        Args:
            name: of the work.
            work: what to do, with tensors that do not move.
            generator: of random numbers that the work draws.
        """
        if not self._captures:
            work()
            return
        with torch.cuda.device(self._device):
            if name in self._graphs and not self.has(name):
                self._graphs[name] = self._captured(work, generator)
            graph = self._graphs.setdefault(name, None)
            if graph is None:
                self._beside(work)
            else:
                graph.replay()

    def _captured(
        self, work: Work, generator: torch.Generator | None
    ) -> torch.cuda.CUDAGraph | None:
        """The graph of some work; None, for good, where it cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        if generator is not None:
            graph.register_generator_state(generator)
        # The memory of another graph; once none is left it cannot be taken again.
        pool = next((one.pool() for one in self._graphs.values() if one is not None), None)

        def capture() -> None:
            # Another thread may use the GPU meanwhile, to read a video.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                with suppress(RuntimeError):  # that something failed inside
                    graph.capture_end()
                raise
            graph.capture_end()

        try:
            self._beside(capture)
        except RuntimeError as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            self.why_not = f"capturing a CUDA graph failed: {reason[0]}"
            self._captures = False
            self.forget()
            return None
        return graph

    def _beside(self, work: Work) -> None:
        """Run on a stream of our own, which capturing wants, in order with the current one."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)
