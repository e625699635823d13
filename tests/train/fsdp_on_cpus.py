"""`videonsa` with sharded weights over gloo.

accelerate shards for GPUs alone, so the processes say that they are of that kind; all else, FSDP2
of PyTorch included, is what runs on GPUs. Exit status 3 if no weight was sharded, 4 if the tower
keeps activations that are to be computed again.
"""

import sys
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


if __name__ == "__main__":
    with (
        patch.object(run, "join_processes", join_as_gpus),
        patch.object(run, "check_processes"),  # which wants GPUs
        patch.object(fsdp, "fully_shard", wraps=fsdp.fully_shard) as sharding,
        patch.object(TOWER, ENABLE, autospec=True, side_effect=getattr(TOWER, ENABLE)) as enabling,
    ):
        status = main(sys.argv[1:])
    wanted = "parallel.activation_checkpointing=true" in sys.argv
    status = status or (4 if wanted and not enabling.called else 0)
    sys.exit(status or (0 if sharding.called else 3))
