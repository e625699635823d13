"""Compiles a kernel for a GPU that is not there by launches on tensors without values.

Run as a script, in a process whose kernels are not interpreted, with an empty cache: one JSON
object on stdout, of what the hooks told.
"""

import json
from unittest import mock

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler.errors import CompilationError

from videonsa.ops.compilation import compile_together, watch_compilation
from videonsa.ops.triton.pool import _poison_kernel, with_poison


class Driver:
    """Of an H200, as far as compiling asks."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def keys(rows):
    return torch.empty(rows, 4, 16, dtype=torch.bfloat16, device="meta")


def forget():
    """As a new process: what was compiled is on the disk alone."""
    _poison_kernel.device_caches.clear()


def main():
    triton.runtime.driver.set_active(Driver())
    mock.patch("torch.cuda.is_available", lambda: True).start()
    others = []
    knobs.compilation.listener = before = lambda **event: others.append(event["cache_hit"])
    found = {}
    notices = []
    with watch_compilation(notices.append) as watch:
        with_poison(keys(32), keys(32))
        found["first"] = watch.compiled.count
        with_poison(keys(32), keys(32))
        found["same process"] = watch.compiled.count
        forget()
        with_poison(keys(32), keys(32))
        found["next process"] = watch.compiled.count
    found["seconds"] = watch.compiled.seconds
    found["notices"] = [x.count for x in notices if x.count]
    hooks = knobs.compilation.listener, knobs.runtime.jit_cache_hook
    found["restored"] = hooks == (before, None)
    with_poison(keys(33), keys(33))
    found["outside"] = watch.compiled.count

    def both():
        with_poison(keys(31), keys(31))
        with_poison(keys(8).half(), keys(8).half())
        return "done"

    forget()
    with watch_compilation() as watch:
        found["together"] = [compile_together(both, workers=2), watch.compiled.count]
        both()
        found["afterwards"] = watch.compiled.count
    try:
        compile_together(lambda: with_poison(keys(8), 1), workers=2)
    except CompilationError:
        found["after one that does not compile"] = compile_together(lambda: "done", workers=2)
    found["others"] = others
    print(json.dumps(found))


if __name__ == "__main__":
    main()
