"""The contestants of gpu_attention.py: each prepares its own layout and metadata from the same tensors and masks,
outside of what is timed, and then is one function to call.

| name | what | skipped blocks | cached q-blocks |
|---|---|---|---|
| ours | the library, through examples/capi; others by `--kernels` with kernels of a folder | S_s | S_c: not touched |
| fa4 | FlashAttention-4 (CuTe DSL), [batch, tokens, heads, head_dim] | lists of full blocks | empty lists: zeros |
| flex | FlexAttention by torch.compile | `BlockMask` of full blocks | empty lists: zeros |
| cudnn, fa2 | scaled_dot_product_attention, that backend alone | none: timed where nothing is skipped | none |
"""

from dataclasses import dataclass
from typing import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_library import Library
from gpu_masks import BLOCK

SPARSE = ("ours", "fa4", "flex")
DENSE = ("cudnn", "fa2")
ALL = SPARSE + DENSE


@dataclass
class Inputs:
    """q, k, v [1, heads, tokens, head_dim]; keep bool [heads, q_blocks, kv_blocks]; computed bool [heads, q_blocks]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    keep: torch.Tensor
    computed: torch.Tensor

    @property
    def live(self):
        return self.keep & self.computed[..., None]


@dataclass
class Contestant:
    """`run` computes once and returns the output [1, heads, tokens, head_dim]; `plan` reads the symbols anew."""

    run: Callable[[], torch.Tensor]
    plan: Callable[[], None] = lambda: None


class Contestants:
    """Makes contestants; keeps what is compiled once for all cells."""

    def __init__(self, names, library_path, kernels):
        self.names = [name for name in ALL if name in names]
        self.libraries = {"ours": Library(library_path)} if "ours" in self.names else {}
        self.libraries |= {name: Library(library_path, folder) for name, folder in kernels.items()}
        self.versions = {}
        self.missing = {}
        self.flash4 = self._try("fa4", self._import_flash4)
        self.flex = self._try("flex", self._compile_flex)

    def _try(self, name, make):
        if name not in self.names:
            return None
        try:
            return make()
        except Exception as error:  # whatever an optional peer fails with, the others go on
            self.missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            self.names.remove(name)
            return None

    def _import_flash4(self):
        from importlib.metadata import version

        from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
        from flash_attn.cute.interface import _flash_attn_fwd

        self.versions["flash-attn-4"] = version("flash-attn-4")
        return _flash_attn_fwd, BlockSparseTensorsTorch

    def _compile_flex(self):
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        # One function for all shapes, compiled anew for each; past the limit it would silently run uncompiled.
        torch._dynamo.config.recompile_limit = 256
        torch._dynamo.config.accumulated_recompile_limit = 1024
        return torch.compile(flex_attention, dynamic=False), BlockMask

    def of(self, inputs, dense):
        """Name -> contestant. `dense`: nothing is skipped, so all take part, and FA4 and Flex get no lists."""
        names = [name for name in self.names if dense or name in SPARSE]
        lists = None if dense else block_lists(inputs.live)
        made = {name: getattr(self, f"_{name}")(inputs, lists) for name in names if name not in self.libraries}
        return {name: self._own(library, inputs) for name, library in self.libraries.items()} | made

    def _own(self, library, inputs):
        attention = library.attention(inputs.q, inputs.k, inputs.v, inputs.keep, inputs.computed)
        return Contestant(attention.run, attention.plan)

    def _fa4(self, inputs, lists):
        forward, sparse_tensors = self.flash4
        q, k, v = (tensor.transpose(1, 2).contiguous() for tensor in (inputs.q, inputs.k, inputs.v))
        out = torch.empty_like(q)
        sparse = None
        if lists:
            none, no_index, count, index = lists
            sparse = sparse_tensors(
                mask_block_cnt=none,
                mask_block_idx=no_index,
                full_block_cnt=count,
                full_block_idx=index,
                block_size=(BLOCK, BLOCK),
            )

        def run():
            forward(q, k, v, out=out, block_sparse_tensors=sparse)
            return out.transpose(1, 2)

        return Contestant(run)

    def _flex(self, inputs, lists):
        flex, block_mask = self.flex
        mask = None
        if lists:
            tokens = inputs.q.shape[2]
            mask = block_mask.from_kv_blocks(*lists, BLOCK_SIZE=(BLOCK, BLOCK), seq_lengths=(tokens, tokens))
        return Contestant(lambda: flex(inputs.q, inputs.k, inputs.v, block_mask=mask))

    def _cudnn(self, inputs, _lists):
        return sdpa(inputs, SDPBackend.CUDNN_ATTENTION)

    def _fa2(self, inputs, _lists):
        return sdpa(inputs, SDPBackend.FLASH_ATTENTION)


def sdpa(inputs, backend):
    def run():
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v)

    return Contestant(run)


def block_lists(live):
    """Counts [1, heads, q_blocks] and indices [1, heads, q_blocks, kv_blocks], int32: of partial blocks (none), then of
    full ones."""
    count = live.sum(-1, dtype=torch.int32)[None].contiguous()
    index = torch.argsort(live.to(torch.int8), dim=-1, descending=True, stable=True).to(torch.int32)[None].contiguous()
    return torch.zeros_like(count), torch.zeros_like(index), count, index
