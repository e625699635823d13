"""Lets a model without values read prompts, on a GPU that is not there, and names its kernels.

Run as a script, in a process whose kernels are not interpreted. Nothing is compiled: Triton's hook
says what would be. One JSON object on stdout.
"""

import json
from dataclasses import replace
from unittest import mock

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget

from videonsa.bench.random_model import TINY, one_layer_model
from videonsa.inference import warm_up
from videonsa.inference.warm_up import Prompt
from videonsa.models.methods import NSA, Dense, ReleasedNSA
from videonsa.models.methods.fastv import FastV


class Driver:
    """Of an H200, as far as compiling asks."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


GPU = {
    "is_available": lambda: True,
    "current_device": lambda: 0,
    "get_device_capability": lambda device: (9, 0),
    "get_device_properties": lambda device: mock.Mock(multi_processor_count=132),
}


def main():
    triton.runtime.driver.set_active(Driver())
    for name, function in GPU.items():
        mock.patch(f"torch.cuda.{name}", function).start()
    wanted = set()

    def note(*, key, fn, **_):
        wanted.add((fn.name.rpartition(".")[2], key))
        return True  # not to be compiled

    knobs.runtime.jit_cache_hook = note

    def kernels(*prompts):
        wanted.clear()
        with torch.inference_mode():
            for prompt in prompts:
                warm_up._read_shape(shadow, prompt)
        return set(wanted)

    shape = replace(TINY, hidden_size=128, num_heads=8, num_kv_heads=2)  # heads of 16
    shape = replace(shape, vision=replace(shape.vision, out_hidden_size=128), method=NSA())
    model = one_layer_model(shape, device=torch.device("cpu"))
    shadow = warm_up._shadow(model)
    short = kernels(Prompt(15, (4, 16, 16), 20))
    long = kernels(Prompt(15, (600, 16, 16), 20))
    usual = kernels(*warm_up.usual_prompts(2**14))
    other = kernels(Prompt(14, (32, 18, 24), 31)) | kernels(Prompt(15, (20, 20, 36), 17, "image"))
    without = {}
    for name, method in {"dense": Dense(), "fastv": FastV(), "released": ReleasedNSA()}.items():
        model.method = method
        without[name] = warm_up._shadow(model) is None
    model.method = FastV(attention=NSA())
    behind = warm_up._shadow(model).method.name
    model.method = NSA(backend="reference")
    without["reference"] = warm_up._shadow(model) is None
    model.method = NSA()
    without["float32"] = warm_up._shadow(model.float()) is None
    found = {
        "names": sorted({name for name, _ in short}),
        "only long": sorted({name for name, _ in long - short}),
        "again": kernels(Prompt(15, (4, 16, 16), 20)) == short,
        "usual": len(usual),
        "lacking": len(other - usual),
        "of": len(other),
        "without": without,
        "behind": behind,
        "device": str(shadow.device),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
