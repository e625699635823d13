"""Any order of reading, asking, forgetting and forking leaves what the plain forward leaves."""

import random

import pytest
import torch
from tiny_models import prompt, tiny

from videonsa.models.cache import VideoNSACache
from videonsa.models.decoding.steps import KeptSteps, rows_needed

TOLERANCE = {"atol": 3e-5, "rtol": 2e-4}


@pytest.fixture(scope="module")
def model():
    return tiny()


class Walk:
    """A cache that static steps read on, beside one that only the forward does."""

    def __init__(self, model, seed):
        self.model, self.choose = model, random.Random(seed)
        self.ours, self.theirs = VideoNSACache(), VideoNSACache()
        self.kept = KeptSteps(model, self.ours)
        self.forks = []
        self.video()

    def ids(self, most):
        return [self.choose.randrange(20, 120) for _ in range(self.choose.randint(1, most))]

    def plain(self, ids, cache):
        return self.model(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1).logits[:, 0]

    def video(self):
        inputs = prompt(self.choose.randint(1, 3), seed=self.choose.randrange(9))
        for cache in (self.ours, self.theirs):
            self.model(**inputs, past_key_values=cache)

    def text(self):
        ids = self.ids(300)
        for cache in (self.ours, self.theirs):
            self.plain(ids, cache)

    def question(self):
        ids, said = self.ids(150), self.ids(6)
        steps = self.kept.of(1, captures=False)
        steps.begin(rows_needed(len(ids), len(said)))
        found = steps.read([ids]).clone()
        for token in said:
            steps.step(torch.tensor([token]))
        read = self.choose.randint(0, len(ids) + len(said))
        wanted = self.plain(ids, self.theirs.fork())
        torch.testing.assert_close(found, wanted, **TOLERANCE)
        steps.keep(read)
        if read:
            self.plain([*ids, *said][:read], self.theirs)

    def questions(self):
        questions = [self.ids(40) for _ in range(self.choose.randint(2, 3))]
        steps = self.kept.of(len(questions), captures=False)
        steps.begin(rows_needed(max(map(len, questions)), 1))
        found = steps.read(questions)
        wanted = torch.cat([self.plain(ids, self.theirs.fork()) for ids in questions])
        torch.testing.assert_close(found, wanted, **TOLERANCE)

    def crop(self):
        count = self.choose.randrange(self.ours.get_seq_length() // 2)
        self.ours.crop(-count)
        self.theirs.crop(-count)

    def fork(self):
        twin = self.ours.fork()
        self.forks.append((twin, [layer.keys.clone() for layer in twin.layers]))
        if len(self.forks) > 2:
            del self.forks[self.choose.randrange(3)]

    def check(self):
        assert self.ours.get_seq_length() == self.theirs.get_seq_length()
        assert self.ours.tokens.frame_sizes == self.theirs.tokens.frame_sizes
        for name in ("vision_mask", "attention_mask", "next_positions"):
            assert torch.equal(getattr(self.ours.tokens, name), getattr(self.theirs.tokens, name))
        for one, other in zip(self.ours.layers, self.theirs.layers, strict=True):
            torch.testing.assert_close(one.keys, other.keys, **TOLERANCE)
            torch.testing.assert_close(one.values, other.values, **TOLERANCE)
        for twin, keys in self.forks:
            assert all(torch.equal(a, b.keys) for a, b in zip(keys, twin.layers, strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_a_walk_ends_where_the_plain_forward_ends(model, seed):
    with torch.inference_mode():
        walk = Walk(model, seed)
        for _ in range(15):
            step = walk.choose.choice(
                [walk.video, walk.text, *[walk.question] * 3, walk.questions, walk.crop, walk.fork]
            )
            step()
            walk.check()
