"""Small calls of the kernels, to run under compute-sanitizer --tool memcheck or racecheck."""

import torch

from videonsa.ops import NSASpec, nsa_attention

CASES = (
    (NSASpec(), 700, None),
    (NSASpec(block_size=16, num_selected_blocks=6, window_size=40, num_init_blocks=1), 300, None),
    (NSASpec(block_size="frame", num_selected_blocks=4), 300, [60] * 5),
    (NSASpec(selection_scope="block", num_selected_blocks=4), 512, None),
)


def main() -> None:
    """Each case once, in bfloat16, G = 7."""
    torch.manual_seed(0)
    for spec, num_tokens, frame_sizes in CASES:
        q, k, v = (
            torch.randn(1, num_tokens, heads, 64, dtype=torch.bfloat16, device="cuda")
            for heads in (14, 2, 2)
        )
        gates = torch.rand(1, num_tokens, 14, 3, device="cuda")
        output = nsa_attention(q, k, v, gates, spec=spec, frame_sizes=frame_sizes, backend="triton")
        print(num_tokens, spec.block_size, spec.selection_scope, bool(output.isfinite().all()))


if __name__ == "__main__":
    with torch.no_grad():
        main()
