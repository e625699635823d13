"""The public names, and that importing them costs nothing."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import videonsa


def test_all_is_sorted_and_every_name_is_there():
    assert videonsa.__all__ == sorted(videonsa.__all__)
    for name in videonsa.__all__:
        assert getattr(videonsa, name) is not None
    assert dir(videonsa) == videonsa.__all__


def test_the_public_names_are_these():
    assert videonsa.__all__ == [
        "Answer",
        "AnswerStream",
        "BudgetError",
        "FrameList",
        "ModelError",
        "NSASpec",
        "SamplingSpec",
        "Session",
        "UsageError",
        "VideoClip",
        "VideoError",
        "VideoNSAError",
        "VideoPlan",
        "VideoQA",
        "__version__",
        "hybrid_attention",
        "load",
        "nsa_attention",
        "plan_video",
        "read_video",
    ]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = videonsa.nothing


def test_version_is_the_packages():
    assert videonsa.__version__ == version("videonsa")


HEAVY = {"torch", "transformers", "av", "numpy", "PIL"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("videonsa", HEAVY),
        ("videonsa.cli.main", HEAVY),
        ("videonsa.data.dataset", {"transformers", "torch._dynamo"}),  # of each reader of videos
    ],
)
def test_importing_needs_no_heavy_library(module, heavy):
    code = (
        f"import sys, {module}; "
        f"heavy = {heavy} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_engine_says_nothing_and_leaves_out_what_it_does_not_need():
    code = (
        "import sys, videonsa.inference.engine; "
        "unused = {'peft', 'pyarrow', 'matplotlib', 'pandas', 'liger_kernel', 'torchvision', "
        "'transformers.trainer'} & set(sys.modules); "
        "sys.exit(f'imported {unused}' if unused else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
