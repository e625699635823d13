"""Points of a budget, knock-outs of branches, and whether gates tell tasks apart."""

import json

import pytest
import torch

from videonsa.analysis.asked import AskedSuite
from videonsa.analysis.branches import Branches, project
from videonsa.analysis.budget import Budget, BudgetOptions, budget_points
from videonsa.analysis.finding import NoOptions
from videonsa.analysis.look import LIGHT, picture
from videonsa.analysis.registry import finding_from
from videonsa.inference.engine import load
from videonsa.ops.spec import NSASpec


def test_points_of_one_budget_have_the_same_keys():
    options = BudgetOptions(shares=(0.0, 0.25, 0.5, 0.9), factors=(0.5, 2))
    own, *others = budget_points(NSASpec(), 64, options)
    assert own == (32, 256)
    assert {blocks * 64 + window for blocks, window in others[:3]} == {2304}
    assert others[3:] == [(16, 128), (64, 512)]


def test_points_are_compared_with_the_model_s_own_and_their_keys_are_counted():
    asked = AskedSuite(suite="clips", kinds=("when",), videos_per_task=2, tokens=128)
    options = BudgetOptions(shares=(0.0,), factors=(8.0,))
    found = Budget.measure(load("embedded"), asked, options, progress=print)
    assert [(one.blocks, one.window, one.keys, one.same_budget) for one in found.points] == [
        (2, 16, 48, True),
        (1, 32, 48, True),
        (16, 128, 384, False),
    ]
    # Before the 128 tokens of 8 frames end 0, 0, ..., 1, 1, ... frames; a whole one counts.
    frames = [(token + 1) // 16 for token in range(128)]
    assert {one.compressed_keys for one in found.points} == {sum(frames) / 128}
    own, _, wide = found.compared.arms
    assert own.agreement.value == 1 and own.difference.value == 0
    assert wide.attention > 1 > own.attention  # selection and window both see everything
    assert finding_from(json.loads(json.dumps(found.to_json()))) == found
    assert b"The budget itself" in picture(found, LIGHT, kind="svg")


def test_tasks_whose_gates_differ_are_told_apart_and_others_are_not():
    torch.manual_seed(0)
    gates = torch.rand(12, 2, 3, 3)
    tasks = ["a", "b"] * 6
    assert project(tasks, list(gates)).probability > 0.05
    gates[::2] += 1
    apart = project(tasks, list(gates))
    assert apart.probability < 0.01
    assert apart.between > 2 * apart.chance
    vectors = gates.flatten(1).double()
    groups = (vectors, vectors[::2], vectors[1::2])
    whole, *within = (float(((one - one.mean(0)) ** 2).sum()) for one in groups)
    assert apart.between == pytest.approx(1 - sum(within) / whole)
    sizes = torch.linalg.eigvalsh(torch.cov(vectors.T))
    assert apart.explained == pytest.approx((sizes[-2:] / sizes.sum()).flip(0).tolist())
    assert project(["a"] * 12, list(gates)).between is None


def test_branches_are_ablated_in_every_way_and_the_untouched_model_agrees_with_itself():
    asked = AskedSuite(suite="clips", kinds=("when",), videos_per_task=2, tokens=128)
    found = Branches.measure(load("embedded"), asked, NoOptions(), progress=print)
    assert [one.label for one in found.compared.arms] == [
        "as trained",
        "without window",
        "without selected",
        "without compressed",
        "compressed alone",
        "selected alone",
        "window alone",
        "none",
        "static mean gates",
    ]
    assert found.compared.arms[0].agreement.value == 1
    shares = [one.attention for one in found.compared.arms]
    assert shares[0] > shares[1] > shares[-2] > 0  # text attends densely
    assert {len(one.head_means) for one in found.gates} == {6}
    assert finding_from(json.loads(json.dumps(found.to_json()))) == found
    assert picture(found, LIGHT).startswith(b"\x89PNG")
    assert found.gates[0].mean.value == pytest.approx(sum(found.gates[0].head_means) / 6)
