"""What a request has in vLLM's pages, and the marks beside them, without vLLM."""

import pytest
import torch

from videonsa.errors import UsageError
from videonsa.serving.vllm.marks import (
    frame_sizes,
    marks_of,
    new_marks,
    with_marks,
    without_marks,
    write_marks,
)
from videonsa.serving.vllm.pages import gather_of

HEADS, WIDTH, PAGE, NUM_PAGES = 2, 8, 4, 6
CPU = torch.device("cpu")


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
    """Marks of texts (a length) and of images and videos (sizes of their frames)."""
    found = []
    for part in parts:
        text = isinstance(part, int)
        features = torch.zeros(0 if text else sum(part), 3, dtype=torch.bfloat16)
        found.append(new_marks(part, CPU) if text else without_marks(with_marks(features, part))[1])
    return torch.cat(found)


@pytest.mark.parametrize("cut", [1, 2, 5, 9, 64])
def test_frames_have_their_whole_size_wherever_steps_are_cut(cut):
    new = chat(3, (4, 4, 4), 2, (3,), (1, 1), 1, (2,))
    pages = torch.tensor([7, 2, 9, 0, 4, 5, 1, 3])
    marks = new_marks(10 * PAGE, CPU)
    places = pages[torch.arange(len(new)) // PAGE] * PAGE + torch.arange(len(new)) % PAGE
    sizes, begins = [4, 4, 4, 3, 1, 1, 2], [3, 7, 11, 17, 20, 21, 23]
    for first in range(0, len(new), cut):
        some = slice(first, first + cut)
        write_marks(marks, places[some], new[some])
        so_far = marks_of(marks, pages, min(first + cut, len(new)), PAGE)
        assert torch.equal(so_far, new[: first + cut])
        begun = [size for size, begin in zip(sizes, begins, strict=True) if begin < first + cut]
        assert frame_sizes(so_far) == begun


def test_marks_of_large_frames_survive_bfloat16():
    for size in (255, 256, 257, 16_384):
        features = torch.randn(size + 1, 3).bfloat16()
        kept, marks = without_marks(with_marks(features, [size, 1]))
        assert torch.equal(kept, features)
        assert frame_sizes(marks) == [size, 1]
        assert int((marks == 0).sum()) == size - 1


def test_padding_marks_nothing_and_a_slot_forgets_what_it_held():
    marks = new_marks(4, CPU)
    write_marks(marks, torch.tensor([2, -1]), torch.tensor([5, 7], dtype=torch.int32))
    assert marks.tolist() == [-1, -1, 5, -1]
    write_marks(marks, torch.tensor([2]), new_marks(1, CPU))
    assert (marks == -1).all()
    assert frame_sizes(marks) == []
