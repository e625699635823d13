"""Sizes in words, and what a plan is made for."""

from dataclasses import replace

import pytest
import torch

from videonsa.errors import UsageError
from videonsa.models.methods import NSA
from videonsa.models.shape import published_shape
from videonsa.planning.devices import Machine, find_machine, parse_memory, runs_by_kernels

CPU = torch.device("cpu")
GPU = Machine(kind="cuda", name="any", memory=None)


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * 10**9), ("16GiB", 2**34), ("1.5 gb", 1_500_000_000), ("512MiB", 2**29)],
)
def test_sizes_are_read(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text", ["", "24", "GB", "-1GB", "0GB", "24TB", "1e9GB", "nanGB", "9" * 400 + "GB"]
)
def test_other_sizes_are_refused(text):
    with pytest.raises(UsageError, match="want a size such as 24GB"):
        parse_memory(text)


def test_a_cpu_has_the_memory_of_its_machine_and_memory_stands_for_a_gpu_elsewhere():
    here = find_machine(CPU)
    assert (here.kind, here.name) == ("cpu", "the CPU")
    assert here.memory is None or 10**8 < here.memory < 10**14
    elsewhere = find_machine(CPU, 10**9)
    assert (elsewhere.kind, elsewhere.memory) == ("cuda", 10**9)


def test_kernels_are_counted_on_where_they_can_run():
    dense = published_shape("Qwen/Qwen2.5-VL-7B-Instruct")
    shape = replace(dense, method=NSA())
    released = published_shape("Enxin/VideoNSA")
    assert runs_by_kernels(shape, GPU)
    assert runs_by_kernels(released, GPU)
    assert not runs_by_kernels(dense, GPU), "it has none of its own"
    assert not runs_by_kernels(shape, find_machine(CPU))
    assert not runs_by_kernels(replace(shape, dtype="float32"), GPU)
    assert not runs_by_kernels(replace(released, dtype="float32"), GPU)
    assert not runs_by_kernels(replace(shape, num_kv_heads=1), GPU), "28 heads share one"
