"""One layer's attention in vLLM: vision tokens by the method, all others by vLLM's kernels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from vllm import _custom_ops as ops
from vllm import envs
from vllm.model_executor.layers.attention.attention import (
    get_attention_context,
    unified_kv_cache_update,
)
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear, ReplicatedLinear
from vllm.model_executor.models.qwen2 import Qwen2Attention, Qwen2DecoderLayer, Qwen2MLP
from vllm.model_executor.models.utils import extract_layer_index

from videonsa.models.gates import branch_gates
from videonsa.models.methods import Attended
from videonsa.models.step import AttentionStep
from videonsa.ops.spec import BRANCHES
from videonsa.serving.vllm.checks import check_kernels
from videonsa.serving.vllm.pages import gather_of
from videonsa.serving.vllm.sparse_step import RequestStep, SparseStep, some_requests

ON_CPU = "CPU_ATTN"


class VideoNSAAttention(Qwen2Attention):  # type: ignore[misc]  # vLLM is not typed
    """Qwen2's attention with the gates of the three branches, where the model has them."""

    def __init__(self, config: Any, *, has_gates: bool, prefix: str, **options: Any) -> None:
        super().__init__(prefix=prefix, **options)
        self.config, self.layer_idx = config, extract_layer_index(prefix)
        check_kernels(self.attn.attn_backend.get_name(), _cpu_kernels(self.attn, options))
        if has_gates:  # heads are shared out like those of the queries
            size, width = self.hidden_size, len(BRANCHES) * self.total_num_heads
            self.g_proj_1 = ReplicatedLinear(size, size, prefix=f"{prefix}.g_proj_1")
            self.g_proj_2 = ColumnParallelLinear(size, width, prefix=f"{prefix}.g_proj_2")

    def branch_gates(self, hidden: Tensor, step: AttentionStep, *, temperature: float) -> Tensor:
        """Gates of this process's heads, `[1, T, HQ, 3]`."""
        return branch_gates(
            hidden,
            lambda rows: self.g_proj_1(rows)[0],
            lambda rows: self.g_proj_2(rows)[0],
            num_heads=self.num_heads,
            temperature=temperature,
        )

    def forward(
        self, positions: Tensor, hidden_states: Tensor, sparse: SparseStep | None = None
    ) -> Tensor:
        """Attend.

        Args:
            positions: `[3, T]`.
            hidden_states: `[T, hidden]`.
            sparse: where vision tokens are among these.
        """
        if sparse is None:
            output: Tensor = super().forward(positions, hidden_states)
            return output
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q, k = self.rotary_emb(positions, q, k)
        q, k, v = (x.reshape(len(x), -1, self.head_dim) for x in (q, k, v))
        attended = self._attend(hidden_states, q, k, v, sparse)
        output, _ = self.o_proj(attended.flatten(1))
        return output

    def _attend(
        self, hidden: Tensor, q: Tensor, k: Tensor, v: Tensor, sparse: SparseStep
    ) -> Tensor:
        unified_kv_cache_update(k, v, self.attn.layer_name)
        _, layer, cache, _ = get_attention_context(self.attn.layer_name)
        output = torch.empty_like(q)
        for request in sparse.requests:
            output[request.rows] = self._attend_sparsely(hidden, q, cache, request)
        rows = sparse.rest_rows
        if len(rows):
            rest = torch.empty_like(q[rows])
            inputs = (q[rows], k[rows], v[rows], cache, sparse.rest_metadata)
            layer.impl.forward(layer, *inputs, output=rest)
            output[rows] = rest
        return output

    def _attend_sparsely(
        self, hidden: Tensor, q: Tensor, cache: Tensor, request: RequestStep
    ) -> Tensor:
        gather = gather_of(self.attn.attn_backend.get_name())
        k, v = gather(cache, request.pages, request.num_tokens)
        rows, step = request.rows, request.step
        found = step.method.attend(self, hidden[None, rows], q[None, rows], k, v, step)
        return (found.output if isinstance(found, Attended) else found)[0]


def _cpu_kernels(attention: Any, options: Mapping[str, Any]) -> str | None:
    """Which of its CPU kernels vLLM will choose; None on a GPU."""
    if attention.attn_backend.get_name() != ON_CPU:
        return None
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    page = options["cache_config"].block_size
    isa: str = _get_attn_isa(torch.get_default_dtype(), page, attention.head_size)
    return isa


class VideoNSADecoderLayer(Qwen2DecoderLayer):  # type: ignore[misc]
    """Qwen2's layer, which hands on what its attention has to know."""

    def __init__(
        self, config: Any, cache_config: Any = None, quant_config: Any = None, prefix: str = ""
    ) -> None:
        nn.Module.__init__(self)  # Qwen2's own would build its attention
        self.hidden_size = config.hidden_size
        self.self_attn = VideoNSAAttention(
            config,
            has_gates=config.videonsa_gates,
            prefix=f"{prefix}.self_attn",
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            max_position=config.max_position_embeddings,
            rope_parameters=config.rope_parameters,
            cache_config=cache_config,
            quant_config=quant_config,
        )
        self.mlp = Qwen2MLP(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            quant_config=quant_config,
            prefix=f"{prefix}.mlp",
        )
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        positions: Tensor,
        hidden_states: Tensor,
        residual: Tensor | None,
        sparse: SparseStep | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As Qwen2's."""
        if residual is None:
            residual, hidden_states = hidden_states, self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions, hidden_states, sparse)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


def metadata_of(layer: Any) -> Any:
    """What makes vLLM's metadata of some requests, for the backend of a layer."""
    if layer.attn_backend.get_name() != ON_CPU:  # FlashAttention
        return lambda metadata, numbers: some_requests(metadata, numbers, scheduler_metadata=None)

    def on_cpu(metadata: Any, numbers: list[int]) -> Any:
        some = some_requests(metadata, numbers, scheduler_metadata=None)
        impl = layer.impl
        some.scheduler_metadata = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=len(numbers),
            num_heads=impl.num_heads,
            num_kv_heads=impl.num_kv_heads,
            head_dim=impl.head_size,
            seq_lens=some.seq_lens,
            dtype=layer.kv_cache.dtype,
            query_start_loc=some.query_start_loc,
            causal=some.causal,
            sliding_window_size=impl.sliding_window,
            isa=layer.isa,
            enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
            dynamic_causal=None,
            kv_cache_dtype=impl.kv_cache_dtype,
        )
        return some

    return on_cpu
