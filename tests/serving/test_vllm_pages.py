"""What a request has in vLLM's pages, and the marks beside them, without vLLM."""

import pytest
import torch

from videonsa.errors import UsageError
from videonsa.serving.vllm.marks import frame_sizes, marks_of, new_marks, write_marks
from videonsa.serving.vllm.pages import gather_of

HEADS, WIDTH, PAGE, NUM_PAGES = 2, 8, 4, 6


def plain_page(cache, place, token, k, v):
    page, row = divmod(place, PAGE)
    cache[page, :, row, :WIDTH], cache[page, :, row, WIDTH:] = k[token], v[token]


def transposed_page(cache, place, token, k, v):
    page, row = divmod(place, PAGE)
    for head in range(HEADS):
        flat = cache[page, head].view(-1)
        for column in range(WIDTH):
            flat[column * PAGE + row] = k[token, head, column]
            flat[PAGE * WIDTH + row * WIDTH + column] = v[token, head, column]


@pytest.mark.parametrize(
    ("backend", "write"), [("FLASH_ATTN", plain_page), ("CPU_ATTN", transposed_page)]
)
@pytest.mark.parametrize("num_tokens", [1, PAGE, 2 * PAGE + 3])
def test_gathered_keys_and_values_are_those_written_in_order(backend, write, num_tokens):
    k, v = torch.randn(2, num_tokens, HEADS, WIDTH).unbind()
    pages = torch.tensor([5, 0, 3, 1], dtype=torch.int32)
    cache = torch.full((NUM_PAGES, HEADS, PAGE, 2 * WIDTH), float("nan"))
    for token in range(num_tokens):
        write(cache, int(pages[token // PAGE]) * PAGE + token % PAGE, token, k, v)
    gathered = gather_of(backend)(cache, pages, num_tokens)
    assert torch.equal(gathered[0], k[None])
    assert torch.equal(gathered[1], v[None])


def test_pages_of_an_unknown_backend_are_refused():
    with pytest.raises(UsageError, match="FLEX: its pages cannot be read, want one of CPU_ATTN"):
        gather_of("FLEX")


def chat(*parts):
    """Position ids `[3, T]` and which tokens are vision, of texts (a length) and grids (t, h, w)."""
    ids, vision, start = [], [], 0
    for part in parts:
        if isinstance(part, int):
            ids += [[start + i] * 3 for i in range(part)]
            vision += [False] * part
            start += part
            continue
        t, h, w = part
        # Two frames may have the same temporal id.
        ids += [[start + f // 2, start + y, start + x] for f in range(t) for y in range(h) for x in range(w)]  # fmt: skip
        vision += [True] * (t * h * w)
        start = max(max(one) for one in ids) + 1
    return torch.tensor(ids).T, torch.tensor(vision)


@pytest.mark.parametrize("cut", [1, 2, 5, 9, 64])
def test_frames_are_found_from_marks_wherever_steps_were_cut(cut):
    positions, vision = chat(3, (3, 2, 2), 2, (1, 3, 1), 1, (4, 1, 1), 2)
    num_tokens = len(vision)
    pages = torch.tensor([7, 2, 9, 0, 4, 5, 1, 3])
    marks = new_marks(10 * PAGE, torch.device("cpu"))
    places = pages[torch.arange(num_tokens) // PAGE] * PAGE + torch.arange(num_tokens) % PAGE
    for first in range(0, num_tokens, cut):
        some = slice(first, first + cut)
        write_marks(marks, places[some], positions[:, some], vision[some])
        so_far = marks_of(marks, pages, min(first + cut, num_tokens), PAGE)
        assert torch.equal(so_far[:, 0] >= 0, vision[: first + cut])
        assert sum(frame_sizes(so_far)) == int(vision[: first + cut].sum())
    assert frame_sizes(marks_of(marks, pages, num_tokens, PAGE)) == [4, 4, 4, 3, 1, 1, 1, 1]


def test_padding_marks_nothing_and_a_slot_forgets_what_it_held():
    marks = new_marks(4, torch.device("cpu"))
    positions = torch.tensor([[0, 1], [5, 6], [7, 8]])
    write_marks(marks, torch.tensor([2, -1]), positions, torch.tensor([True, True]))
    assert marks.tolist() == [[-1, -1], [-1, -1], [5, 7], [-1, -1]]
    write_marks(marks, torch.tensor([2]), positions[:, :1], torch.tensor([False]))
    assert (marks == -1).all()
    assert frame_sizes(marks) == []
