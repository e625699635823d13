"""Triton's own hooks: being told of every kernel that is compiled, and compiling side by side."""

import contextvars
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import triton
from triton import knobs

try:
    from triton.runtime.cache import triton_key
except ImportError:  # before Triton 3.6
    from triton.compiler.compiler import triton_key

_Result = TypeVar("_Result")


@contextmanager
def listening(
    begun: Callable[[Hashable], None], ended: Callable[[float | None], None]
) -> Iterator[None]:
    """Be told of every kernel that this process does not know yet, of whichever library and thread.

    The hooks are the process's: contexts end in the reverse order of their beginnings.

    Args:
        begun: called with what names a kernel when it is asked for; Triton may have it on the disk.
        ended: called when it is there: with the seconds that compiling it took, or None where it
            was on the disk.
    """
    hook, listener = knobs.runtime.jit_cache_hook, knobs.compilation.listener

    def ask(*, fn: Any, key: str, **event: Any) -> bool | None:
        triton_key()  # hashes all of Triton, once a process: half a second that nothing compiles
        begun((fn.module, fn.name, key))
        return None if hook is None else hook(fn=fn, key=key, **event)

    def listen(*, cache_hit: bool, times: Any, **event: Any) -> None:
        ended(None if cache_hit else times.total / 1e6)
        if listener is not None:
            listener(cache_hit=cache_hit, times=times, **event)

    knobs.runtime.jit_cache_hook, knobs.compilation.listener = ask, listen
    try:
        yield
    finally:
        knobs.runtime.jit_cache_hook, knobs.compilation.listener = hook, listener


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
