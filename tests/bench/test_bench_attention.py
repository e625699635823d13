"""The whole benchmark, on tiny shapes and with made-up ops."""

import json

import pytest
import torch

from videonsa.bench import attention as attention_module
from videonsa.bench import passes as passes_module
from videonsa.bench import verify as verify_module
from videonsa.bench.attention import Request, bench_attention
from videonsa.bench.attention_shapes import SHAPES
from videonsa.bench.op_calls import Prepared
from videonsa.bench.op_registry import BASELINE, OPS, Op
from videonsa.errors import VideoNSAError

CPU = torch.device("cpu")


def work(size):
    """Some time that grows with the size."""
    x = torch.ones(size, size)
    return Prepared(lambda: x @ x, (x,), ("made up",))


def made_up(name, size=8, **options):
    return Op(name=name, what="", prepare=lambda inputs, shape: work(size), **options)


BASE = made_up(BASELINE, size=256, sparse=False)


@pytest.fixture(autouse=True)
def _short_verification(monkeypatch):
    monkeypatch.setattr(verify_module, "LENGTHS", (40,))


def bench(
    *ops,
    shapes=("tiny-256",),
    passes=("forward",),
    regimes=("random", "coherent"),
    repeats=2,
    before=None,
    tests_again=False,
):
    """All results, one a shape and pass, and the lines of progress."""
    request = Request(
        shapes=tuple(SHAPES[name] for name in shapes),
        ops=ops,
        passes=passes,
        regimes=regimes,
        repeats=repeats,
        tests_again=tests_again,
        device=CPU,
    )
    lines = []
    return list(bench_attention(request, progress=lines.append, before=before)), lines


def runs_of(result, index=0):
    return {(run["op"], run["regime"]): run for run in result["shapes"][index]["runs"]}


def test_sparse_ops_run_in_every_regime_and_dense_ones_once():
    (result,), _ = bench(BASE, made_up("other"))
    runs = runs_of(result)
    assert list(runs) == [(BASELINE, "any"), ("other", "random"), ("other", "coherent")]
    assert all(len(run["times_ms"]) == 2 for run in runs.values())
    assert runs["other", "random"]["notes"] == ["made up"]


def test_every_time_is_a_ratio_to_the_baseline_of_the_same_shape():
    (result,), _ = bench(made_up("other"), BASE)
    runs = runs_of(result)
    for run in runs.values():
        assert run["ratio"] == run["ms"] / runs[BASELINE, "any"]["ms"]
    assert runs[BASELINE, "any"]["ratio"] == 1


def test_without_the_baseline_there_is_no_ratio():
    (result,), _ = bench(made_up("other"))
    assert all(run["ratio"] is None for run in result["shapes"][0]["runs"])


def test_the_union_of_the_ops_own_selection_stands_beside_its_time():
    (result,), _ = bench(OPS["videonsa"])
    runs = runs_of(result)
    random, coherent = (runs["videonsa", name]["mean_union"] for name in ("random", "coherent"))
    assert 4 <= coherent < random <= 16


def test_the_result_names_machine_shape_and_verification_and_is_json():
    (result,), lines = bench(OPS["videonsa"], regimes=("random",))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    entry = result["shapes"][0]
    assert entry["shape"]["name"] == "tiny-256"
    assert entry["shape"]["tokens"] == 256
    assert entry["verification"]["checks"] == 4
    assert entry["verification"]["worst_gradient_error"] is None
    assert result["pass"] == "forward"
    assert result["machine"]["torch"] == torch.__version__
    assert lines[0].startswith("verify videonsa, tiny-256 at")
    assert lines[-1].startswith("tiny-256 forward: videonsa, random: ")


def test_every_pass_has_its_own_result_with_gradients_verified():
    results, lines = bench(
        OPS["videonsa"], OPS["sdpa-flash"], passes=("forward", "backward", "both")
    )
    assert [result["pass"] for result in results] == ["forward", "backward", "both"]
    for result in results:
        runs = runs_of(result)
        assert len(runs) == 3
        assert all(len(run["times_ms"]) == 2 for run in runs.values())
        assert all(run["mean_union"] for run in runs.values() if run["op"] == "videonsa")
        assert 0 < result["shapes"][0]["verification"]["worst_gradient_error"] < 1
    assert lines[-1].startswith("tiny-256 both: sdpa-flash: ")


def test_an_op_without_a_backward_pass_is_told_and_its_forward_pass_measured():
    def no_backward(inputs, shape):
        return Prepared(lambda: inputs.q.detach() * 2, inputs)

    op = Op(name="forward only", what="", prepare=no_backward, sparse=False)
    forward, backward = bench(op, made_up("other"), passes=("forward", "backward"))[0]
    assert runs_of(forward)["forward only", "any"]["status"] == "measured"
    run = runs_of(backward)["forward only", "any"]
    assert (run["status"], run["ms"]) == ("failed", None)
    assert "does not require grad" in run["error"]
    assert runs_of(backward)["other", "random"]["status"] == "measured"


def test_only_the_forward_pass_runs_without_gradients():
    seen = []

    def prepare(inputs, shape):
        def forward():
            seen.append((torch.is_grad_enabled(), inputs.q.requires_grad))
            return inputs.q * 1

        return Prepared(forward, (inputs.q,))

    op = Op(name="watched", what="", prepare=prepare, sparse=False)
    for which, wanted in (("both", True), ("forward", False)):
        bench(op, passes=(which,))
        assert set(seen) == {(wanted, wanted)}
        seen.clear()


def test_a_gradient_that_does_not_fit_leaves_no_number_in_that_pass(monkeypatch):
    def runs_out(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(passes_module, "make_grad_output", runs_out)
    results, _ = bench(BASE, made_up("gpu only", needs_gpu=True), passes=("backward", "forward"))
    statuses = [[run["status"] for run in result["shapes"][0]["runs"]] for result in results]
    assert statuses == [
        ["out of memory", "needs a GPU", "needs a GPU"],
        ["measured", "needs a GPU", "needs a GPU"],
    ]


def test_an_op_that_cannot_run_is_told_and_the_others_run():
    def refuses(inputs, shape):
        raise ValueError("not for this shape")

    def runs_out(inputs, shape):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def breaks():
        raise RuntimeError("no kernel")

    (result,), lines = bench(
        Op(name="refuses", what="", prepare=refuses),
        Op(name="runs out", what="", prepare=runs_out),
        Op(name="breaks", what="", prepare=lambda *_: Prepared(breaks, ())),
        made_up("gpu only", needs_gpu=True),
        made_up("missing", packages=(("no_such_module", "no-such-package"),)),
        made_up("other"),
        regimes=("random",),
    )
    found = {run["op"]: (run["status"], run["error"]) for run in result["shapes"][0]["runs"]}
    assert found == {
        "refuses": ("refused", "ValueError: not for this shape"),
        "runs out": ("out of memory", "OutOfMemoryError: CUDA out of memory"),
        "breaks": ("failed", "RuntimeError: no kernel"),
        "gpu only": ("needs a GPU", "gpu only needs a CUDA GPU, this is cpu"),
        "missing": (
            "not installed",
            "no-such-package not found: pip install no-such-package",
        ),
        "other": ("measured", None),
    }
    assert "tiny-256 forward: breaks, random: failed: RuntimeError: no kernel" in lines


def test_inputs_that_do_not_fit_leave_no_number_and_the_next_shape_runs(monkeypatch):
    real = attention_module.make_inputs

    def small_only(shape, *args, **options):
        if shape.name == "tiny-256":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(shape, *args, **options)

    monkeypatch.setattr(attention_module, "make_inputs", small_only)
    results, _ = bench(made_up("other"), shapes=("tiny-256", "tiny-1k"))
    statuses = [{run["status"] for run in entry["runs"]} for entry in results[-1]["shapes"]]
    assert statuses == [{"out of memory"}, {"measured"}]


def test_a_union_that_does_not_fit_is_noted_and_the_time_kept(monkeypatch):
    def breaks(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attention_module, "attend_with_branches", breaks)
    (result,), _ = bench(OPS["videonsa"], regimes=("random",))
    run = runs_of(result)["videonsa", "random"]
    assert run["mean_union"] is None
    assert run["ms"] > 0
    assert run["notes"] == ["no mean union: OutOfMemoryError: CUDA out of memory"]


def test_a_result_is_given_after_every_shape():
    results, _ = bench(made_up("other"), shapes=("tiny-256", "tiny-1k"))
    names = [[entry["shape"]["name"] for entry in result["shapes"]] for result in results]
    assert names == [["tiny-256"], ["tiny-256", "tiny-1k"]]


def test_shapes_are_measured_from_the_shortest_on():
    results, _ = bench(made_up("other"), shapes=("tiny-1k", "tiny-256"))
    assert [entry["shape"]["name"] for entry in results[0]["shapes"]] == ["tiny-256"]


PASSED = {"tests": "tests/ops/triton: 89 passed in 104 s", "tests_date": "2026-01-02"}


@pytest.fixture
def earlier():
    """A result of this code and machine, as if the kernels' tests had run on a GPU."""
    (result,), _ = bench(made_up("other"))
    result["shapes"][0]["verification"] |= PASSED
    return result


def kernel_tests(result):
    verified = result["shapes"][0]["verification"]
    return {name: verified[name] for name in PASSED}


@pytest.mark.parametrize("which", ["forward", "both"])
def test_the_kernels_tests_are_kept_from_any_pass_of_the_same_code_and_machine(earlier, which):
    earlier["pass"] = which
    (result,), lines = bench(made_up("other"), before={which: earlier})
    assert kernel_tests(result) == PASSED
    assert "89 passed in 104 s (2026-01-02, same code and machine: not run again)" in lines[0]


def test_tests_of_an_older_result_have_the_day_of_its_shape(earlier):
    entry = earlier["shapes"][0]
    del entry["verification"]["tests_date"]
    (result,), _ = bench(made_up("other"), before={"forward": earlier})
    assert kernel_tests(result) == PASSED | {"tests_date": entry["date"]}


@pytest.mark.parametrize("why", ["asked for", "other code", "did not run"])
def test_the_kernels_tests_are_not_kept(earlier, why):
    if why == "other code":
        earlier["machine"]["sources_sha256"] = "0" * 16
    if why == "did not run":
        said = "tests/ops/triton not run: pytest is not installed"
        earlier["shapes"][0]["verification"]["tests"] = said
    again = why == "asked for"
    (result,), _ = bench(made_up("other"), before={"forward": earlier}, tests_again=again)
    assert kernel_tests(result) == {"tests": None, "tests_date": None}


def test_failed_verification_gives_no_result(monkeypatch):
    monkeypatch.setattr(verify_module, "attend", lambda inputs, *_, **__: inputs.q)
    request = Request(
        shapes=(SHAPES["tiny-256"],),
        ops=(BASE, OPS["videonsa"]),
        passes=("forward",),
        regimes=("random",),
        repeats=1,
        device=CPU,
    )
    measured = []
    monkeypatch.setattr(attention_module, "measure_shape", lambda *_, **__: measured.append(1))
    with pytest.raises(VideoNSAError, match=r"output without branches.*nothing was measured"):
        next(bench_attention(request, progress=lambda _: None))
    assert measured == []


def test_other_shapes_of_an_earlier_result_of_the_same_code_are_kept():
    (earlier,), _ = bench(made_up("other"), shapes=("tiny-1k",))
    (result,), _ = bench(made_up("other"), shapes=("tiny-256",), before={"forward": earlier})
    assert result["shapes"][0] == earlier["shapes"][0]
    assert [entry["shape"]["name"] for entry in result["shapes"]] == ["tiny-1k", "tiny-256"]
    (again,), _ = bench(made_up("third"), shapes=("tiny-1k",), before={"forward": result})
    assert {run["op"] for run in again["shapes"][0]["runs"]} == {"third"}
    assert again["shapes"][1] == result["shapes"][1]


def test_an_earlier_result_of_other_code_is_replaced_and_that_is_told():
    (earlier,), _ = bench(made_up("other"), shapes=("tiny-1k",))
    earlier["machine"]["sources_sha256"] = "0" * 16
    (result,), lines = bench(made_up("other"), before={"forward": earlier})
    assert [entry["shape"]["name"] for entry in result["shapes"]] == ["tiny-256"]
    assert any("it is replaced" in line for line in lines)
