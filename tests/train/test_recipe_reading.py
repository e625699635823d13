from typing import get_args, get_type_hints

import pytest
import yaml

from videonsa.errors import UsageError
from videonsa.ops.spec import BRANCHES, NSASpec
from videonsa.train.reading import read_recipe, recipe_names, recipe_to_yaml
from videonsa.train.settings import SECTIONS, AttentionSettings


def test_every_recipe_of_the_package_can_be_read():
    names = recipe_names()
    assert {"videonsa-7b", "dense-7b", "videonsa-3b", "tiny"} <= set(names)
    assert sum(name.startswith("branch-") for name in names) == 6
    for name in names:
        assert read_recipe(name).name == name


def test_the_recipe_of_the_paper():
    recipe = read_recipe("videonsa-7b")
    optimizer = recipe.optimizer
    assert (optimizer.learning_rate, optimizer.warmup, optimizer.weight_decay) == (1e-6, 0.1, 0.01)
    assert (optimizer.betas, optimizer.max_grad_norm) == ((0.9, 0.999), 1.0)
    assert (optimizer.batch_size, optimizer.epochs, optimizer.steps) == (32, 1, None)
    assert optimizer.batch_of == "samples"
    assert (recipe.data.context, recipe.data.fps, recipe.data.max_pixels) == (36_864, 4.0, 50_176)
    assert (recipe.data.min_frames, recipe.data.max_frames) == (350, 550)
    assert recipe.attention.method().spec == NSASpec.paper(
        block_size=64, num_selected_blocks=32, window_size=256
    )
    assert recipe.model.freeze == ()


def test_the_dense_baseline_differs_in_its_attention_alone():
    dense, sparse = (
        yaml.safe_load(recipe_to_yaml(read_recipe(n))) for n in ("dense-7b", "videonsa-7b")
    )
    assert dense.pop("attention")["kind"] == "dense"
    sparse.pop("attention")
    assert dense == sparse
    assert read_recipe("dense-7b").attention.method().name == "dense"


def test_one_and_two_branches():
    found = {
        read_recipe(name).attention.method().spec.branches
        for name in recipe_names()
        if name.startswith("branch-")
    }
    alone = {(branch,) for branch in BRANCHES}
    pairs = {tuple(b for b in BRANCHES if b != left_out) for left_out in BRANCHES}
    assert found == alone | pairs


def test_a_resolved_recipe_reads_back_as_itself(tmp_path):
    recipe = read_recipe("tiny", settings=["optimizer.betas=[0.5, 0.75]", "model.freeze=[vit]"])
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe_to_yaml(recipe))
    assert read_recipe(str(path)) == recipe


def test_a_file_extends_a_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: videonsa-7b\noptimizer:\n  learning_rate: 1e-5\n")
    recipe = read_recipe(str(path), settings=["run.seed=3"])
    assert recipe.name == "mine"
    assert recipe.optimizer.learning_rate == 1e-5
    assert recipe.optimizer.batch_size == 32
    assert recipe.run.seed == 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.learning_rat=1", "did you mean optimizer.learning_rate?"),
        ("optimiser.warmup=0.1", "did you mean optimizer?"),
        ("optimizer.batch_size=4.5", "optimizer.batch_size=4.5: want a whole number"),
        ("optimizer.batch_size=true", "optimizer.batch_size=True: want a whole number"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate='fast': want a number"),
        ("optimizer.betas=[0.9]", "want a list of a number"),
        ("optimizer.warmup=2", "want 0 to 1, a share of the steps"),
        ("attention.kind=sparse", "attention.kind='sparse': want nsa or dense"),
        ("attention.branches=[global]", "attention.branches has 'global': want some of compressed"),
        ("attention.window_size=0", "window_size"),
        ("model.freeze=[tower]", "model.freeze has 'tower': want some of vit, merger, llm"),
        ("parallel.fsdp=maybe", "parallel.fsdp='maybe': want true or false or auto"),
        ("run.report_to=[paper]", "run.report_to has 'paper'"),
        ("optimizer.steps", "--set optimizer.steps: want section.key=value"),
        ("optimizer.steps=[", "--set optimizer.steps=[: not YAML"),
        ("optimizer=3", "optimizer. is no setting"),
    ],
)
def test_a_mistake_is_told_in_one_line(setting, message):
    with pytest.raises(UsageError) as caught:
        read_recipe("videonsa-7b", settings=[setting])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_are_sharded_in_one_way_and_auto_leaves_it_to_deepspeed():
    with pytest.raises(UsageError, match=r"parallel\.fsdp and parallel\.deepspeed: want one of"):
        read_recipe("videonsa-7b", settings=["parallel.deepspeed=a.json", "parallel.fsdp=true"])
    assert (
        read_recipe("videonsa-7b", settings=["parallel.deepspeed=a.json"]).parallel.fsdp == "auto"
    )


OUT_OF_BOUNDS = [
    ("run.validation_samples", ("0", "-1")),
    *((f"optimizer.{name}", ("0", "-1", "2")) for name in ("learning_rate", "epsilon")),
    ("optimizer.gate_learning_rate", ("0", "-1", "2")),
    ("optimizer.weight_decay", ("-0.1", "1.5")),
    ("optimizer.warmup", ("-0.1", "1")),
    ("optimizer.max_grad_norm", ("0", "-1", "1e300")),
    *((f"optimizer.{name}", ("0", "-1")) for name in ("batch_size", "steps", "epochs")),
    ("model.lora_rank", ("-1", "100000")),
    ("model.lora_alpha", ("0", "-1")),
    ("model.lora_dropout", ("-0.1", "1")),
    *((f"attention.{name}", ("0", "-1")) for name in ("block_size", "window_size")),
    ("attention.num_selected_blocks", ("0", "-1")),
    ("data.context", ("0", "-1")),
    ("data.fps", ("0", "-1", "1e9")),
    *((f"data.{name}", ("-1",)) for name in ("max_pixels", "min_frames", "max_frames")),
    ("data.num_workers", ("-1", "5000")),
    ("data.max_failed_share", ("-0.1", "1.5")),
    ("data.most_time_scale", ("0.5", "1e9")),
    ("data.weights", ("0", "-1")),
    ("parallel.sequence", ("0", "-1")),
    ("run.seed", ("-1", "4294967296")),
    *((f"run.{name}", ("0", "-1")) for name in ("log_every", "save_every", "keep")),
    *((f"run.{name}", ("0", "-1")) for name in ("max_skipped", "evaluate_samples")),
    *((f"run.{name}", ("0", "-1")) for name in ("seconds", "peak_tflops")),
    ("run.evaluate_every", ("-1",)),
    ("run.evaluate_frame_size", ("0", "5000")),
]


@pytest.mark.parametrize(("name", "values"), OUT_OF_BOUNDS)
def test_every_number_of_a_recipe_has_bounds(name, values):
    many = ("1" + "0" * 22, "0x" + "f" * 8000)
    for value in (*values, *many, ".nan", ".inf", "-.inf", "1" * 10_000):
        with pytest.raises(UsageError) as caught:
            read_recipe("tiny", settings=[f"{name}={value}"])
        message = str(caught.value)
        assert "not YAML" in message or (message.startswith(name) and "want" in message)
        assert "\n" not in message and len(message) < 400


def test_the_numbers_with_bounds_are_all_that_a_recipe_has():
    numbers = {
        f"{section}.{name}"
        for section, kind in SECTIONS.items()
        for name, hint in get_type_hints(kind).items()
        if {int, float} & {hint, *get_args(hint)}
    }
    assert numbers == {name for name, _ in OUT_OF_BOUNDS} | {"optimizer.betas"}


@pytest.mark.parametrize("betas", ["[2, 2]", "[-0.1, 0.9]", "[0.9, 1.0]", "[.nan, 0.9]"])
def test_betas_have_bounds(betas):
    with pytest.raises(UsageError, match=r"optimizer\.betas=\[.*want each from 0 to below 1"):
        read_recipe("tiny", settings=[f"optimizer.betas={betas}"])


def test_an_unknown_recipe_names_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="did you mean videonsa-7b"):
        read_recipe("videonsa-7")
    with pytest.raises(UsageError, match="cannot be read"):
        read_recipe(str(tmp_path / "none.yaml"))


def test_a_recipe_may_extend_a_file_beside_it_or_where_its_path_says(tmp_path, monkeypatch):
    base = tmp_path / "folder" / "base.yaml"
    base.parent.mkdir()
    base.write_text("extends: tiny\noptimizer: {steps: 7}\n")
    beside, elsewhere = base.with_name("beside.yaml"), tmp_path / "elsewhere.yaml"
    beside.write_text("extends: base.yaml\n")
    elsewhere.write_text("extends: folder/base.yaml\n")
    assert read_recipe(str(beside)).optimizer.steps == 7
    monkeypatch.chdir(tmp_path)
    assert read_recipe("elsewhere.yaml").optimizer.steps == 7


def test_a_recipe_that_extends_itself_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(f"extends: {path}\n")
    with pytest.raises(UsageError, match="extends itself"):
        read_recipe(str(path))


def test_methods_that_are_for_answering_are_refused():
    with pytest.raises(
        UsageError, match=r"attention\.kind='fastv': recipes train 'nsa' or 'dense'"
    ):
        AttentionSettings(kind="fastv")
