"""What is run before, and what is timed, of each pass."""

import pytest
import torch
from torch import nn

from videonsa.bench.measure import CudaWatch, measure_in_turn
from videonsa.bench.op_calls import Prepared
from videonsa.bench.passes import make_tasks


class Logged(torch.autograd.Function):
    """x * y, with a log of its passes."""

    @staticmethod
    def forward(ctx, x, y, log):
        log.append("forward")
        ctx.save_for_backward(x, y)
        ctx.log = log
        return x * y

    @staticmethod
    def backward(ctx, grad_output):
        ctx.log.append("backward")
        x, y = ctx.saved_tensors
        return grad_output * y, grad_output * x, None


def product(log):
    x, y = (1 + torch.rand(1, 4, 2, 3) for _ in range(2))
    return Prepared(lambda: Logged.apply(x, y, log), (x, y))


@pytest.mark.parametrize(
    ("which", "whole", "untimed", "timed"),
    [
        ("forward", ["forward"], ["forward"], ["forward"]),
        ("backward", ["forward", "backward"], ["forward"], ["backward"]),
        ("both", ["forward", "backward"], ["forward", "backward"], ["forward", "backward"]),
    ],
)
def test_a_pass_times_its_part_directly_after_an_untimed_one(which, whole, untimed, timed):
    log = []
    task = make_tasks({"op": product(log)}, which)["op"]
    with torch.set_grad_enabled(which != "forward"):
        for _ in range(2):
            task.whole()
            assert log == whole
            log.clear()
            run = task.start()
            assert log == untimed
            log.clear()
            run()
            assert log == timed
            log.clear()


@pytest.mark.parametrize("which", ["backward", "both"])
def test_the_outcome_is_the_output_and_the_gradient_of_every_input(which):
    op = product([])
    x, y = op.inputs
    task = make_tasks({"op": op}, which)["op"]
    for output, grad_x, grad_y in (task.whole(), task.start()()):
        assert torch.equal(output, x * y)
        torch.testing.assert_close(grad_x / y, grad_y / x)
        assert len((grad_x / y).unique()) == x.numel()
    assert x.grad is None


def test_gradients_are_no_longer_wanted_in_a_forward_pass_after_another():
    op = product([])
    make_tasks({"op": op}, "both")
    assert all(x.requires_grad for x in op.inputs)
    (output,) = make_tasks({"op": op}, "forward")["op"].whole()
    assert not output.requires_grad


def test_all_outputs_get_one_gradient_in_the_layout_of_their_op():
    seen = {}

    def watched(name, x):
        def forward():
            output = x * 1
            output.register_hook(lambda grad: seen.update({name: grad}))
            return output

        return Prepared(forward, (x,))

    inputs = {
        "rows": torch.rand(1, 4, 2, 3),
        "padded": torch.rand(1, 4, 8, 3),
        "heads": torch.rand(1, 4, 2, 3).transpose(1, 2),
    }
    ops = {name: watched(name, x) for name, x in inputs.items()}
    for task in make_tasks(ops, "backward").values():
        task.whole()
    assert torch.equal(seen["rows"], seen["heads"].transpose(1, 2))
    assert seen["heads"].stride() == inputs["heads"].stride()
    assert torch.equal(seen["padded"].flatten()[:24], seen["rows"].flatten())
    assert len(seen["padded"].unique()) == 96


def test_without_an_op_there_is_no_task():
    assert make_tasks({}, "backward") == {}


@pytest.mark.gpu
@pytest.mark.parametrize("which", ["backward", "both"])
def test_the_memory_of_a_backward_pass_is_what_is_saved_for_it(which):
    device = torch.device("cuda")
    x = torch.ones(2**20, device=device)
    op = Prepared(lambda: nn.functional.relu(x.exp()).sin(), (x,))
    tasks = make_tasks({"op": op}, which)
    found = measure_in_turn(tasks, watch=CudaWatch(device), repeats=3)["op"]
    # exp and relu of 4 MiB each are saved beside the output; some are in the making at the peak.
    assert 2 * 2**22 <= found.extra_bytes <= 4 * 2**22
    assert len(found.times_ms) == 3
