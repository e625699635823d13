import pytest
import torch
from conftest import TOKENIZER
from small_manifest import write_manifest

from videonsa.data.dataset import VideoDataset
from videonsa.data.loader import PackedLoader
from videonsa.data.suite_source import SuiteSource
from videonsa.errors import UsageError
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.methods import Dense, nsa_method
from videonsa.ops.spec import NSASpec
from videonsa.train.captured import CapturedSteps
from videonsa.train.masters import MasterWeights

SPEC = NSASpec(block_size="frame", num_selected_blocks=2, window_size=16)
ON_GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """Two packs of each of two shapes, each video with times of its own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    records = [
        entry.found
        for frames in (32, 48)
        for entry in SuiteSource(count=4, frames=frames, kinds="order+direction").entries()
    ]
    path = tmp_path_factory.mktemp("equal") / "m.parquet"
    dataset = VideoDataset(
        write_manifest(path, records, tokenizer), tokenizer=tokenizer, most_time_scale=4.0
    )
    yield list(PackedLoader(dataset, max_tokens=1024, seed=0, shapes="equal"))
    dataset.close()


def gradients(model):
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize("method", [nsa_method(SPEC), Dense()], ids=["nsa", "dense"])
def test_packs_of_several_shapes_have_the_loss_and_gradients_of_forward(
    tiny_folder, packs, method, device
):
    model = load_model(tiny_folder, dtype=torch.float32, method=method, fresh_gates=True).model
    model = model.to(device).train()
    steps = CapturedSteps(model)
    assert len({pack.shape for pack in packs}) == 2
    for pack in (*packs, packs[0]):
        loss = steps.run(pack)
        found = gradients(model)
        expected = model(**pack.model_inputs(device), loss_only=True).loss
        expected.backward()
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(found, gradients(model))
        del expected  # its graph adds up gradients on another stream than the next capture


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
def test_gradients_of_several_packs_add_up(tiny_folder, packs, device):
    model = load_model(tiny_folder, dtype=torch.float32, method=Dense()).model.to(device).train()
    steps, three = CapturedSteps(model), (*packs[:2], packs[0])
    apart = []
    for pack in three:
        steps.run(pack, 100)
        apart.append(gradients(model))
    for pack in three:
        steps.run(pack, 100)
    wanted = {name: sum(found[name] for found in apart) for name in apart[0]}
    torch.testing.assert_close(gradients(model), wanted)


def test_the_loss_is_divided_by_the_labels_of_the_step_where_they_are_given(tiny_folder, packs):
    model = load_model(tiny_folder, dtype=torch.float32, method=Dense()).model
    steps = CapturedSteps(model)
    own = int((packs[0].labels != -100).sum())
    torch.testing.assert_close(steps.run(packs[0], 4 * own), steps.run(packs[0]) / 4)


def test_a_pack_of_different_shapes_is_refused(tiny_folder, packs):
    from dataclasses import replace

    model = load_model(tiny_folder, dtype=torch.float32, method=Dense()).model
    with pytest.raises(UsageError, match=r"run\.capture=true and a pack whose samples differ"):
        CapturedSteps(model).run(replace(packs[0], shape=None))


def test_masters_move_by_less_than_weights_can_show_and_gradients_add_up_in_float32():
    layer = torch.nn.Linear(4, 4, bias=False)
    start = layer.weight.detach().clone()
    masters = MasterWeights(layer)
    assert layer.weight.dtype == torch.bfloat16
    torch.testing.assert_close(masters.state_dict()["weight"], start, rtol=0, atol=0)
    optimizer = torch.optim.SGD(masters.parameters(), lr=1.0)
    optimizer.register_step_post_hook(masters.update_weights)
    for _ in range(64):
        for _ in range(2):
            (layer.weight.float().sum() * 2**-14).backward()
            masters.collect()
        assert layer.weight.grad is None
        optimizer.step()
    moved = start - masters.state_dict()["weight"]
    torch.testing.assert_close(moved, torch.full_like(start, 64 * 2 * 2**-14), rtol=1e-3, atol=0)
    rounded = masters.state_dict()["weight"].bfloat16()
    torch.testing.assert_close(layer.weight.detach(), rounded, rtol=0, atol=0)
    assert all(master.grad is None for master in masters.parameters())
