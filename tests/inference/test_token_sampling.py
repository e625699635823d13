"""From logits to ids: options against the checkpoint's, drawing, the repetition penalty."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from videonsa.errors import ModelError, UsageError
from videonsa.inference.sampling import (
    NOT_FINITE,
    GenerationOptions,
    GenerationSettings,
    Sampler,
    penalised,
    probabilities,
)

QWEN = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-6}


def sampler_of(logits, *, never=(), **settings):
    """A sampler for logits `[B, V]`, on the CPU."""
    batch_size, vocab_size = logits.shape
    return Sampler(
        GenerationSettings(**settings),
        batch_size=batch_size,
        vocab_size=vocab_size,
        device="cpu",
        never=never,
    )


def random_logits(batch_size=3, vocab_size=500, *, seed=0):
    return 4 * torch.randn(
        batch_size, vocab_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float32
    )


def one_by_one(**settings):
    """A sampler for logits `[V]` of one sample."""
    samplers = {}

    def choose(logits):
        sampler = samplers.setdefault(len(logits), sampler_of(logits[None], **settings))
        return sampler(logits[None]).item()

    return choose


# What is asked for, and what the checkpoint states.


def resolved(stated=None, **options):
    config = None if stated is None else GenerationConfig(**stated)
    return GenerationOptions(**options).resolve(config)


def test_without_wishes_the_likeliest_token_of_the_plain_logits_is_taken():
    assert resolved() == resolved({}) == GenerationSettings()
    assert GenerationSettings() == GenerationSettings(
        max_new_tokens=64,
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        stop=(),
        seed=None,
    )


def test_the_published_model_draws_at_its_temperature_with_its_penalty():
    settings = resolved(QWEN)
    assert settings.draws and settings.seed is not None
    assert replace(settings, seed=None) == GenerationSettings(
        temperature=1e-6, repetition_penalty=1.05
    )


@pytest.mark.parametrize(
    ("stated", "options", "expected"),
    [
        ({"max_new_tokens": 2048}, {}, {"max_new_tokens": 2048}),
        ({"max_new_tokens": 2048}, {"max_new_tokens": 8}, {"max_new_tokens": 8}),
        ({"stop_strings": "END"}, {}, {"stop": ("END",)}),
        ({"stop_strings": ["A", "B"]}, {}, {"stop": ("A", "B")}),
        ({"stop_strings": ["A", "B"]}, {"stop": ()}, {}),
        ({"repetition_penalty": 1.05}, {"repetition_penalty": 1}, {}),
        ({"temperature": 0.7, "top_p": 0.8, "top_k": 20}, {}, {}),
        ({"do_sample": False, "temperature": 0.7}, {}, {}),
        (QWEN, {"temperature": 0}, {"repetition_penalty": 1.05}),
        ({"do_sample": True}, {"seed": 3}, {"temperature": 1.0, "seed": 3}),
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
            {"seed": 3, "top_p": 0.5},
            {"temperature": 0.7, "top_p": 0.5, "top_k": 20, "seed": 3},
        ),
        (
            {"do_sample": False, "top_p": 0.8, "top_k": 20},
            {"seed": 3, "temperature": 2},
            {"temperature": 2.0, "top_p": 0.8, "top_k": 20, "seed": 3},
        ),
        ({}, {"top_p": 0.5, "top_k": 3, "seed": 1}, {}),
    ],
)
def test_what_is_passed_goes_before_what_is_stated(stated, options, expected):
    assert resolved(stated, **options) == GenerationSettings(**expected)


def test_drawing_without_a_seed_is_given_one_so_that_it_can_be_repeated():
    seeds = {resolved({}, temperature=1.0).seed for _ in range(4)}
    assert len(seeds) > 1 and all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(
    "wrong",
    [
        {"repetition_penalty": True},
        {"repetition_penalty": -1.0},
        {"do_sample": True, "temperature": 1e-9},
        {"top_k": "many"},
        {"stop_strings": [3]},
        {"max_new_tokens": 0.5},
    ],
)
def test_a_checkpoint_that_states_nonsense_is_refused_unless_a_value_is_passed(wrong):
    config = GenerationConfig()
    for name, value in wrong.items():
        setattr(config, name, value)
    with pytest.raises(ModelError, match=r"^generation_config\.json: .*: want ") as caught:
        GenerationOptions().resolve(config)
    assert "\n" not in str(caught.value)
    right = GenerationOptions(
        max_new_tokens=4, temperature=0, top_k=0, repetition_penalty=1, stop=()
    )
    assert right.resolve(config) == GenerationSettings(max_new_tokens=4)


def test_the_settings_are_json():
    settings = resolved({}, temperature=2, top_p=1, stop=["a", "b"], seed=5)
    kept = json.loads(json.dumps(asdict(settings)))
    assert kept == {
        "max_new_tokens": 64,
        "temperature": 2.0,
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
        "stop": ["a", "b"],
        "seed": 5,
    }
    assert GenerationSettings(**kept) == settings


def test_one_stop_text_is_not_taken_for_its_letters():
    assert GenerationOptions(stop="END").stop == ("END",)


WRONG = [
    {"max_new_tokens": 0},
    {"max_new_tokens": 2.0},
    {"max_new_tokens": "8"},
    {"temperature": -0.1},
    {"temperature": float("nan")},
    {"temperature": 1e-320},
    {"temperature": 10**400},
    {"temperature": "hot"},
    {"temperature": True},
    {"top_p": 0.0},
    {"top_p": 1.5},
    {"top_p": float("nan")},
    {"top_p": "all"},
    {"top_p": [0.5]},
    {"top_k": -1},
    {"top_k": 5.0},
    {"top_k": True},
    {"repetition_penalty": 0},
    {"repetition_penalty": -1.05},
    {"repetition_penalty": float("inf")},
    {"repetition_penalty": "some"},
    {"stop": 3},
    {"stop": ("a", "")},
    {"stop": ["a", 3]},
    {"stop": ""},
    {"seed": -1},
    {"seed": 2**63},
    {"seed": 1.0},
    {"seed": "1"},
]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", [GenerationOptions, GenerationSettings])
def test_options_outside_their_domain_are_refused(wrong, kind):
    (name,) = wrong
    with pytest.raises(UsageError, match=f"^{name}=.*: want ") as caught:
        kind(**wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["max_new_tokens", "temperature", "top_p", "top_k", "stop"])
def test_only_options_leave_values_open(name):
    assert GenerationOptions(**{name: None}) == GenerationOptions()
    with pytest.raises(UsageError, match=f"{name}=None"):
        GenerationSettings(**{name: None})


# Against transformers.


def warped(logits, settings):
    """The scores of transformers' warpers, in its order."""
    warpers = [TemperatureLogitsWarper(settings.temperature)]
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))
    return LogitsProcessorList(warpers)(None, logits)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 7, 499, 500, 10_000])
@pytest.mark.parametrize("top_p", [1e-6, 0.2, 0.8, 0.999, 1.0])
def test_probabilities_are_those_of_transformers(temperature, top_k, top_p):
    settings = GenerationSettings(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = random_logits(seed=top_k)
    logits[1] = logits[1].round()  # many equal ones
    assert torch.equal(probabilities(logits, settings), warped(logits, settings).softmax(-1))


def test_the_penalty_is_that_of_transformers_for_both_signs():
    logits = random_logits()
    ids = torch.randint(0, 500, (3, 60), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(3, 500, dtype=torch.bool).scatter_(1, ids, True)
    assert (logits[seen] > 0).any() and (logits[seen] < 0).any()
    for penalty in (0.8, 1.05, 3.0):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
        assert torch.equal(penalised(logits, seen, penalty=penalty), expected)


@pytest.mark.parametrize("penalty", [0.7, 1.05, 1.8])
def test_prompt_and_answer_so_far_are_penalised_as_in_transformers(penalty):
    """Greedily, over steps whose logits stay nearly the same, so that the penalty decides."""
    logits = 10 + random_logits(vocab_size=40) / 16
    ids = torch.tensor([[1, 2, 3], [4, 4, 4], [39, 0, 7]])
    sampler = sampler_of(logits, repetition_penalty=penalty)
    sampler.see(ids)
    processor, plain = RepetitionPenaltyLogitsProcessor(penalty), []
    for step in range(12):
        now = logits + random_logits(vocab_size=40, seed=step) / 64
        expected = processor(ids, now.clone()).argmax(-1)
        chosen = sampler(now)
        assert torch.equal(chosen, expected)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
        plain.append(now.argmax(-1))
    assert not torch.equal(torch.stack(plain, dim=1), ids[:, 3:]), "the penalty changes nothing"


def test_the_penalty_comes_before_temperature_top_k_and_top_p():
    settings = {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "repetition_penalty": 2.0}
    logits = random_logits(1, 50)
    seen = logits.topk(2).indices
    drawn = set()
    for seed in range(300):
        sampler = sampler_of(logits, **settings, seed=seed)
        sampler.see(seen)
        drawn.add(sampler(logits).item())
    scores = RepetitionPenaltyLogitsProcessor(2.0)(seen, logits.clone())
    kept = warped(scores, GenerationSettings(**settings))[0].isfinite()
    assert drawn == set(kept.nonzero()[:, 0].tolist())


# What is seen.


def test_padded_tokens_are_not_seen():
    logits = random_logits(2, 20)
    padded, mask = torch.tensor([[0, 0, 5], [7, 8, 9]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    alone = []
    for row, ids in ((0, [5]), (1, [7, 8, 9])):
        sampler = sampler_of(logits[:1], repetition_penalty=5.0)
        sampler.see(torch.tensor([ids]))
        alone.append([sampler(logits[row : row + 1]).item() for _ in range(6)])
    for given in (mask, mask.bool()):
        sampler = sampler_of(logits, repetition_penalty=5.0)
        sampler.see(padded, given)
        steps = [sampler(logits).tolist() for _ in range(6)]
        assert list(map(list, zip(*steps, strict=True))) == alone


def test_what_all_samples_share_is_seen_by_each():
    logits = random_logits(3, 20)
    one, each = (sampler_of(logits, repetition_penalty=5.0) for _ in range(2))
    one.see(torch.tensor([[3, 4]]))
    one.see(torch.tensor([[5], [6], [7]]))
    each.see(torch.tensor([[3, 4, 5], [3, 4, 6], [3, 4, 7]]))
    for _ in range(5):
        assert torch.equal(one(logits), each(logits))


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 7}])
def test_a_restarted_sampler_chooses_what_a_new_one_does(settings):
    logits = random_logits(2, 30)
    sampler = sampler_of(logits, repetition_penalty=2.0, **settings)
    before = sampler.generator
    first = [sampler(logits).tolist() for _ in range(4)]
    sampler.restart(settings.get("seed"))
    assert [sampler(logits).tolist() for _ in range(4)] == first
    assert sampler.generator is before


def test_without_a_penalty_nothing_is_kept_of_what_was_seen():
    logits = random_logits()
    sampler = sampler_of(logits)
    sampler.see(torch.tensor([[1, 2, 3]]))
    assert sampler.generator is None
    assert torch.equal(sampler(logits), logits.argmax(-1))
    assert torch.equal(sampler(logits), logits.argmax(-1))


# Drawing.


def test_drawing_follows_temperature_and_top_p():
    logits = torch.tensor([2.0, 1.0, 0.0, -30.0])
    choose = one_by_one(temperature=1.0, seed=0)
    counts = torch.bincount(torch.tensor([choose(logits) for _ in range(4000)]), minlength=4)
    assert torch.allclose(counts / 4000, torch.softmax(logits, 0), atol=0.03)

    # The two likeliest hold 0.91, the likeliest alone 0.67.
    narrow = one_by_one(temperature=1.0, top_p=0.8, seed=0)
    assert {narrow(logits) for _ in range(300)} == {0, 1}
    single = one_by_one(temperature=1.0, top_p=0.1, seed=0)
    assert {single(logits) for _ in range(50)} == {0}
    best = one_by_one(temperature=1.0, top_k=2, seed=0)
    assert {best(logits) for _ in range(300)} == {0, 1}


def test_samples_of_a_batch_draw_for_themselves():
    logits = torch.zeros(2, 50)
    sampler = sampler_of(logits, temperature=1.0, seed=0)
    rows = torch.stack([sampler(logits) for _ in range(20)])
    assert not torch.equal(rows[:, 0], rows[:, 1])


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_the_lowest_and_the_highest_temperature_draw(temperature):
    choose = one_by_one(temperature=temperature, seed=0)
    drawn = {choose(torch.tensor([1.0, 3.0, 2.0])) for _ in range(40)}
    assert drawn == ({1} if temperature < 1 else {0, 1, 2})


@pytest.mark.parametrize("noise", [0.0, 1.0, float("inf")])
def test_what_has_no_probability_is_never_drawn_whatever_the_noise(monkeypatch, noise):
    def exponential(self, generator):
        return self.fill_(noise)

    monkeypatch.setattr(torch.Tensor, "exponential_", exponential)
    choose = one_by_one(temperature=1.0, top_k=1, seed=0)
    assert choose(torch.tensor([1.0, 0.5, 3.0])) == (2 if noise < float("inf") else 0)


@pytest.mark.parametrize("settings", [{}, {"temperature": 5.0, "seed": 0, "top_k": 4}])
@pytest.mark.parametrize("penalty", [1.0, 0.5])
def test_what_is_never_to_be_chosen_is_not(settings, penalty):
    logits = torch.tensor([[1.0, 9.0, 2.0, 8.0, -1.0]])
    sampler = sampler_of(logits, never=(1, 3), repetition_penalty=penalty, **settings)
    sampler.see(torch.tensor([[1, 3]]))
    drawn = {sampler(logits).item() for _ in range(60)}
    assert drawn == ({0, 2, 4} if settings else {2})
    assert logits.tolist() == [[1.0, 9.0, 2.0, 8.0, -1.0]], "the caller's logits are left alone"


# Logits that are not finite.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 0, "top_p": 0.9}])
@pytest.mark.parametrize("penalty", [1.0, 1.05])
def test_no_token_is_chosen_from_logits_that_are_not_finite(value, settings, penalty):
    choose = one_by_one(repetition_penalty=penalty, **settings)
    assert choose(torch.tensor([1.0, value, 0.5])) == NOT_FINITE
    assert choose(torch.tensor([1.0, 30.0, 0.5])) == 1


@pytest.mark.parametrize("temperature", [0.0, 1e-6])
@pytest.mark.parametrize("penalty", [1.0, 1.05])
def test_no_sample_of_a_batch_hides_that_the_logits_of_another_are_not_finite(temperature, penalty):
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [3.0, 2.0]])
    sampler = sampler_of(logits, temperature=temperature, repetition_penalty=penalty, seed=0)
    assert sampler(logits).tolist() == [1, NOT_FINITE, 0]


# On a GPU.


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.3},
        {"temperature": 1.0, "seed": 3},
        {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 3},
    ],
)
@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_captured_sampler_draws_what_the_plain_one_does_without_waiting(settings, batch_size):
    vocab_size, device = 152_064, torch.device("cuda")
    steps = random_logits(8 * batch_size, vocab_size).to(device).view(8, batch_size, vocab_size)
    ids = torch.randint(0, vocab_size, (1, 1000), device=device)

    def new():
        return Sampler(
            GenerationSettings(**settings),
            batch_size=batch_size,
            vocab_size=vocab_size,
            device=device,
            never=(151_655, 151_656),
        )

    plain = new()
    plain.see(ids)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        expected = torch.stack([plain(logits) for logits in steps])
    finally:
        torch.cuda.set_sync_debug_mode("default")

    captured, logits = new(), steps[0].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        captured(logits)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    if captured.generator is not None:
        graph.register_generator_state(captured.generator)
    with torch.cuda.graph(graph):
        chosen = captured(logits)
    for _ in range(2):
        captured.restart(settings.get("seed"))
        captured.see(ids)
        for step in range(len(steps)):
            logits.copy_(steps[step])
            graph.replay()
            assert torch.equal(chosen, expected[step])
