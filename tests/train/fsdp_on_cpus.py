"""`videonsa` with sharded weights over gloo.

accelerate shards for GPUs alone, so the processes say that they are of that kind; all else, FSDP2
of PyTorch included, is what runs on GPUs.
"""

from typing import Any
from unittest.mock import patch

from accelerate.utils import DistributedType
from torch.distributed import fsdp
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from videonsa.cli.main import main
from videonsa.train import run

TOWER = modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel
ENABLE = "gradient_checkpointing_enable"


def join_as_gpus(*, on_gpu: bool, join: Any = run.join_processes) -> Any:
    """The processes of torchrun."""
    state = join(on_gpu=on_gpu)
    state.distributed_type = DistributedType.MULTI_GPU
    return state


def main_sharded(argv: list[str]) -> int:
    """`main`; status 3: no weight was sharded; 4: the tower kept activations to be recomputed."""
    with (
        patch.object(run, "join_processes", join_as_gpus),
        patch.object(run, "check_processes"),  # which wants GPUs
        patch.object(fsdp, "fully_shard", wraps=fsdp.fully_shard) as sharding,
        patch.object(TOWER, ENABLE, autospec=True, side_effect=getattr(TOWER, ENABLE)) as enabling,
    ):
        status = main(argv)
    wanted = "parallel.activation_checkpointing=true" in argv
    status = status or (4 if wanted and not enabling.called else 0)
    return status or (0 if sharding.called else 3)
