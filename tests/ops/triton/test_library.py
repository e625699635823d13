"""The custom ops as PyTorch sees them: schema, fake tensors, one graph under torch.compile."""

import pytest
import torch
from gradient_cases import kernel_gradients, leaves, make_grad
from kernel_cases import Case, make_inputs, run_kernels
from torch._subclasses.fake_tensor import FakeTensorMode

from videonsa.ops import nsa, nsa_attention
from videonsa.ops.triton import attention

HALF = torch.float16
CASES = {
    "batch of two": Case(rows=9, batch=2, kv_heads=2, s=4, n=2, dtype=HALF),
    "frames": Case(rows=20, s="frame", frames=(9, 12), n=2, dtype=HALF),
    "block scope": Case(rows=32, n=2, dtype=HALF, options={"selection_scope": "block"}),
}
OPS = {False: "nsa", True: "nsa_branches"}


class Recorded(Exception):
    """Carries the arguments of an op out of the call."""


@pytest.fixture
def arguments_of(monkeypatch, device):
    """The arguments that a call of `nsa_attention` gives to its custom op."""

    def record(*arguments):
        raise Recorded(arguments)

    def arguments_of(case, *, return_branches, **options):
        with monkeypatch.context() as patch, pytest.raises(Recorded) as caught:
            patch.setattr(torch.ops.videonsa, OPS[return_branches], record)
            inputs = make_inputs(case, device)
            run_kernels(case, inputs, return_branches=return_branches, **options)
        return caught.value.args[0]

    return arguments_of


@pytest.mark.parametrize("return_branches", [False, True])
def test_op_keeps_its_schema_and_its_fake_tells_the_truth(return_branches, arguments_of):
    op = getattr(attention, OPS[return_branches])
    arguments = arguments_of(CASES["batch of two"], return_branches=return_branches)
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_given_selection_is_not_returned_as_the_same_memory(arguments_of, device):
    """An op may not return its input; `selected_blocks` goes through it."""
    given = torch.zeros(1, 20, 1, 2, dtype=torch.int32, device=device)
    arguments = arguments_of(CASES["frames"], return_branches=True, selected_blocks=given)
    torch.library.opcheck(
        attention.nsa_branches, arguments, test_utils=("test_schema", "test_faketensor")
    )


@pytest.fixture
def arguments_of_backward(monkeypatch, device):
    """The arguments that the backward pass of a case gives to its custom op."""
    case = CASES["frames"]
    inputs = make_inputs(case, device)
    seen = []
    original = torch.ops.videonsa.nsa_backward

    def record(*arguments):
        seen.append(arguments)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.videonsa, "nsa_backward", record)
        kernel_gradients(case, inputs, make_grad(case, inputs))
    return seen[0]


def test_backward_op_keeps_its_schema_and_its_fake_tells_the_truth(arguments_of_backward):
    torch.library.opcheck(
        attention.nsa_backward, arguments_of_backward, test_utils=("test_schema", "test_faketensor")
    )


def test_gradients_of_the_op_are_registered_for_tracing(arguments_of):
    arguments = arguments_of(CASES["batch of two"], return_branches=True)
    arguments = (*leaves(arguments[:4]), *arguments[4:])
    torch.library.opcheck(
        attention.nsa_branches, arguments, test_utils=("test_autograd_registration",)
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_fake_tensors_have_the_shapes_of_the_real_result(case, device):
    inputs = make_inputs(case, device)
    real = run_kernels(case, inputs)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = run_kernels(case, [mode.from_tensor(x) for x in inputs])
    for name, ours, theirs in zip(real._fields, fake, real, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), name


@pytest.fixture
def traceable_interpreter(monkeypatch):
    """Dynamo cannot trace how the knob reads the environment; on a GPU nobody asks."""
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", triton.knobs.runtime.interpret)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["batch of two", "block scope"])
def test_compiled_function_has_one_graph_and_the_same_bits(name, device, traceable_interpreter):
    case = CASES[name]
    inputs = make_inputs(case, device)

    def attend(*tensors):
        return nsa_attention(*tensors, spec=case.spec, backend="triton") * 2

    with torch.no_grad():
        found = torch.compile(attend, fullgraph=True, backend="eager")(*inputs)
    assert torch.equal(found, run_kernels(case, inputs, return_branches=False) * 2)


def test_compiled_forward_and_backward_give_the_same_gradients(device, traceable_interpreter):
    case = CASES["block scope"]
    inputs = make_inputs(case, device)
    grad = make_grad(case, inputs)

    def attend(*tensors):
        return nsa_attention(*tensors, spec=case.spec, backend="triton") * 2

    own = leaves(inputs)
    output = torch.compile(attend, fullgraph=True, backend="aot_eager")(*own)
    found = torch.autograd.grad(output, own, grad / 2)  # powers of two: no rounding
    for ours, theirs in zip(found, kernel_gradients(case, inputs, grad), strict=True):
        assert torch.equal(ours, theirs)


def test_choice_of_the_default_backend_breaks_no_graph(device, traceable_interpreter):
    case = CASES["batch of two"]

    def choose(*tensors):
        return tensors[0] + int(
            nsa._use_kernels("auto", nsa._Call(*tensors, case.spec, return_branches=False, layer=0))
        )

    inputs = make_inputs(case, device)
    with torch.no_grad():
        found = torch.compile(choose, fullgraph=True, backend="eager")(*inputs)
        assert torch.equal(found, choose(*inputs))


def test_autocast_takes_float32_inputs_to_its_dtype(device):
    case = Case(rows=20, n=2, dtype=torch.float32)
    inputs = make_inputs(case, device)
    with torch.autocast(device.type, dtype=HALF):
        found = run_kernels(case, inputs)
    halves = [*(x.to(HALF) for x in inputs[:3]), inputs[3]]
    wanted = run_kernels(case, halves)
    assert found.output.dtype == torch.float32
    assert torch.equal(found.selected_blocks, wanted.selected_blocks)
    assert torch.equal(found.output, wanted.output.float())
