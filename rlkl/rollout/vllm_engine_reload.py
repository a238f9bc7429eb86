"""Loading new weights into the model of vLLM's worker, whole or bucket by bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Load = Callable[[Sequence[tuple[str, Tensor]]], frozenset[str]]
"""Load some checkpoint-named tensors; return the engine's parameters that these did not reach."""


class WeightReloader:
    """Methods for new weights that vLLM mixes into its worker, where the model lives."""

    model_runner: Any
    vllm_config: Any

    @contextmanager
    def reloading(self) -> Iterator[Load]:
        """Let the block load new weights, in place, by calls of the yielded function.

        vLLM begins and finishes the reload once, however many calls there are: it completes a layer when all of its
        tensors are there. It keeps tensors until then, so they must stay as they are. If the block raises, layers
        without new weights have the old ones back, and the next reload works.
        """
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
        from vllm.platforms import current_platform

        model = self.model_runner.get_model()
        expected = frozenset(name for name, _ in model.named_parameters())
        if current_platform.is_cpu():
            _forget_packed_experts(model)
        initialize_layerwise_reload(model)
        try:
            yield lambda tensors: expected - set(model.load_weights(iter(tensors)))
        finally:
            finalize_layerwise_reload(model, self.vllm_config.model_config)
            self.model_runner.reset_lora_state()
            if current_platform.is_cpu():
                _repack_tied_head(model)


def _forget_packed_experts(model: torch.nn.Module) -> None:
    """Make the coming reload pack the experts of mixture layers again, as the first load did.

    On a CPU vLLM multiplies by a packed and padded copy of the experts, and packs only when it builds the layer's
    kernel. A reload keeps the kernel, so it would write plain weights into packed storage.
    """
    from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase

    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if isinstance(method, FusedMoEMethodBase):
            method.moe_kernel = None


def _repack_tied_head(model: torch.nn.Module) -> None:
    """Pack the LM head again.

    On a CPU vLLM multiplies by a packed copy, which a reload leaves stale if the head is tied.
    """
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
