"""What a row may not see changes no bit of it: one poisoned token, and what must stay."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from videonsa.ops import NSASpec, nsa_attention
from videonsa.ops.spec import NSAResult

TILE = 32
"""Most rows of a tile of the selected branch, which choose together how their blocks are read."""
OF_ROWS = (*NSAResult._fields, "grad of q", "grad of gates")
OF_KEYS = ("grad of k", "grad of v")


class Stream:
    """T tokens of random inputs, packed samples where `lengths` has several, and all that follows.

    `arguments` go to `nsa_attention`.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        group: int = 2,
        kv_heads: int = 1,
        dim: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        spec: NSASpec,
        **arguments: object,
    ) -> None:
        cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
        self.bounds = list(pairwise(cu_seqlens.tolist()))
        self.arguments = {"spec": spec} | arguments
        if len(lengths) > 1:
            self.arguments["cu_seqlens_k"] = cu_seqlens.int().to(device)
        generator = torch.Generator().manual_seed(0)
        rows, heads = sum(lengths), group * kv_heads

        def normal(heads: int) -> Tensor:
            return torch.randn(1, rows, heads, dim, generator=generator).to(device, dtype)

        self.inputs = {"q": normal(heads), "k": normal(kv_heads), "v": normal(kv_heads)}
        self.inputs["gates"] = torch.rand(1, rows, heads, 3, generator=generator).to(device)
        self.inputs["grad"] = normal(heads)
        self.clean = self.results(self.inputs)

    def results(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """All fields of the result and all gradients, each `[T, ...]`."""
        names = ("q", "k", "v", "gates")
        with torch.no_grad():
            tensors = (inputs[name] for name in names)
            result = nsa_attention(*tensors, return_branches=True, **self.arguments)
        own = [inputs[name].clone().requires_grad_() for name in names]
        output = nsa_attention(*own, **self.arguments)
        grads = torch.autograd.grad(output, own, inputs["grad"])
        named = zip((f"grad of {name}" for name in names), grads, strict=True)
        return {name: x[0] for name, x in (result._asdict() | dict(named)).items()}

    def with_poison(self, names: Sequence[str], token: int, value: float) -> dict[str, Tensor]:
        """The results where the token's rows of some inputs hold `value` in one channel."""
        inputs = dict(self.inputs)
        for name in names:
            inputs[name] = inputs[name].clone()
            inputs[name][:, token, :, 3] = value
        return self.results(inputs)

    def assert_unseen(self, names: Sequence[str], token: int, value: float) -> None:
        """Rows that do not see the token, and keys that no row that does sees, keep their bits.

        The row itself sees it, so that nothing is lost either. Rows of one tile of the kernels
        choose together which blocks they read together: where the poison is in q, other rows of its
        tile may be rounded otherwise, and are finite.
        """
        found = self.with_poison(names, token, value)
        first, stop = next(x for x in self.bounds if x[0] <= token < x[1])
        place = torch.arange(len(found["output"]), device=found["output"].device)
        elsewhere = (place < first) | (place >= stop)
        is_key = not {"k", "v"}.isdisjoint(names)
        rows = elsewhere | (place < token if is_key else place != token)
        keys = elsewhere | (place > token if not is_key else False)
        far = elsewhere | ((place - token).abs() >= TILE)
        near_tile = "q" in names and self.arguments["backend"] == "triton"
        for of, places in ((OF_ROWS, rows), (OF_KEYS, keys)):
            for name in of:
                exact = places & far if near_tile else places
                same = found[name][exact] == self.clean[name][exact]
                assert same.all(), f"{name}: other bits in rows {place[exact][_rows(~same)]}"
                near = found[name][places & ~exact]
                assert not near.isnan().any(), f"{name}: not finite near the token"
        if value != value:  # an infinite score may be a weight of 0
            seen = "grad of q" if list(names) == ["grad"] else "output"
            assert found[seen][token].isnan().any(), "the row itself did not see it"


def _rows(wrong: Tensor) -> Tensor:
    return wrong.flatten(1).any(1).nonzero()[:8, 0]
