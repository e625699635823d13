"""Triton's own hooks: being told of every kernel that is compiled, and compiling side by side."""

import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import triton
from triton import knobs

_Result = TypeVar("_Result")


@contextmanager
def listening(told: Callable[[float], None]) -> Iterator[None]:
    """Call `told` with the seconds that each kernel took, of whichever library and thread.

    Kernels that Triton finds in its cache, on the disk or in the process, are not told of. The hook
    is the process's: contexts end in the reverse order of their beginnings.
    """
    before = knobs.compilation.listener

    def listen(*, cache_hit: bool, times: Any, **event: Any) -> None:
        if not cache_hit:
            told(times.total / 1e6)
        if before is not None:
            before(cache_hit=cache_hit, times=times, **event)

    knobs.compilation.listener = listen
    try:
        yield
    finally:
        knobs.compilation.listener = before


def side_by_side(call: Callable[[], _Result], *, workers: int) -> _Result:
    """Call something whose launches on tensors without values compile on `workers` threads.

    Returns when all of them are compiled. Triton that cannot do so compiles one after the other.
    """
    mode = getattr(triton, "AsyncCompileMode", None)
    if mode is None:
        return call()

    def inside() -> _Result:
        with ThreadPoolExecutor(workers) as pool, mode(pool):
            return call()

    # The mode is a context variable, which stays set where a kernel does not compile.
    return contextvars.copy_context().run(inside)
