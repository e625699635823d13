import pytest
import torch
from test_packed import labels_of, pack, samples
from tiny_models import prompt, tiny

from videonsa.errors import UsageError
from videonsa.models import loss as loss_module


def of(model, **inputs):
    model.zero_grad()
    result = model(**inputs, use_cache=False)
    result.loss.backward()
    return result, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("num_items", [None, torch.tensor(37)])
@pytest.mark.parametrize("packed", [False, True], ids=["one sample", "packed"])
def test_the_loss_without_logits_and_its_gradients_are_those_of_all_logits(
    monkeypatch, packed, num_items
):
    monkeypatch.setattr(loss_module, "ROWS_AT_A_TIME", 3)
    inputs = pack(samples()) if packed else prompt(3)
    inputs |= {"labels": labels_of(inputs), "num_items_in_batch": num_items}
    whole, expected = of(tiny(), **inputs)
    lean, grads = of(tiny(), **inputs, loss_only=True)
    assert lean.logits is None
    torch.testing.assert_close(lean.loss, whole.loss)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], msg=name)


def test_without_a_label_the_loss_is_zero_and_the_head_takes_part():
    inputs = prompt(3)
    labels = torch.full_like(inputs["input_ids"], -100)
    result, grads = of(tiny(), **inputs, labels=labels, num_items_in_batch=5, loss_only=True)
    assert result.loss == 0
    assert not grads["lm_head.weight"].any()


def test_a_few_logits_are_refused():
    inputs = prompt(3)
    with pytest.raises(UsageError, match="without logits_to_keep"):
        tiny()(**inputs, labels=inputs["input_ids"], loss_only=True, logits_to_keep=2)
