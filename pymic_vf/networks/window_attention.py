"""The transformer branch of a PCT block: 3D Swin blocks on the tokens of all voxels.

MIS-FM, section 3.1.4 (P-MSA and SP-MSA); Swin Transformer (Liu et al. 2021), equations 3 and 4. Tokens are
[N * D * H * W, C], in the order of the volume: the memory of a channels-last [N, C, D, H, W] tensor as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from pymic_vf.networks.drop_path import DropPath
from pymic_vf.networks.dropout import Dropout, dropout
from pymic_vf.networks.windows import WindowLayout, from_windows, relative_position_index, to_windows

MLP_RATIO = 4
DROP_PATH = 0.2
TABLE_STD = 0.02
CHUNK = 2**21  # elements of the largest intermediate result of a chunk: 8 MB in float32


def by_chunks(function: Callable[..., Tensor], x: Tensor, rows: int, *args: Tensor) -> list[Tensor]:
    """function(x, *args), on a CPU in chunks of so many rows of `x`, whose intermediate results fit its cache.

    They are then not kept for the backward pass either: to compute them again costs less than new memory for them.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return [function(x, *args)]
    if torch.is_grad_enabled():
        return [checkpoint(function, chunk, *args, use_reentrant=False) for chunk in x.split(rows)]
    return [function(chunk, *args) for chunk in x.split(rows)]


class _KeptTerms(NamedTuple):
    """What the windows' scaled products are added to, and what it was made of."""

    layout: WindowLayout
    table: Tensor
    index: Tensor
    terms: list[Tensor]

    def are_of(self, layout: WindowLayout, table: Tensor, index: Tensor) -> bool:
        return self.layout is layout and torch.equal(self.table, table) and torch.equal(self.index, index)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias for each relative position.

    The projection at the end is for real voxels only: windows are put together, and padding left out, before it.
    """

    def __init__(self, chns: int, num_heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 3, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(chns, 3 * chns)
        self.attn_drop = dropout
        self.proj = nn.Linear(chns, chns)
        self.proj_drop = Dropout(dropout)
        self._kept: _KeptTerms | None = None
        nn.init.trunc_normal_(self.relative_position_bias_table, std=TABLE_STD)

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        tokens = self.window**3
        windows = to_windows(x, layout)
        groups = windows.split([group.windows * tokens for group in layout.groups])
        rows = tokens * max(1, CHUNK // (self.num_heads * tokens**2))
        outputs = []
        for group, term in zip(groups, self.terms(layout), strict=True):
            outputs += by_chunks(self.attend, group, rows, term)
        windows = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        return self.proj_drop(self.proj(from_windows(windows, layout)))

    def terms(self, layout: WindowLayout) -> list[Tensor]:
        """[1, heads, T, T] of each group of windows: the position bias, and the group's mask added.

        In inference on a CPU they are kept until the windows or the bias change. The bias is compared by its values: it
        may be written to in ways that torch does not count. On a GPU comparing costs more than to make them again.
        """
        table, index = self.relative_position_bias_table, self.relative_position_index
        if torch.compiler.is_compiling() or self.training or torch.is_grad_enabled() or table.device.type != "cpu":
            return self._new_terms(layout)
        if self._kept is None or not self._kept.are_of(layout, table, index):
            self._kept = _KeptTerms(layout, table.clone(), index.clone(), self._new_terms(layout))
        return self._kept.terms

    def _new_terms(self, layout: WindowLayout) -> list[Tensor]:
        bias = self.position_bias()[None]
        return [bias if mask is None else bias + mask.to(bias.dtype) for _, mask in layout.groups]

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be made again: copies and pickles stay small."""
        return {**self.__dict__, "_kept": None}

    def position_bias(self) -> Tensor:
        """[heads, T, T]."""
        tokens = self.window**3
        rows = self.relative_position_bias_table.index_select(0, self.relative_position_index.flatten())
        return rows.T.reshape(self.num_heads, tokens, tokens)

    def attend(self, x: Tensor, term: Tensor) -> Tensor:
        """[windows * T, C] to the same; `term` [1, heads, T, T] is added to the scaled products, in every window."""
        rows, chns = x.shape
        heads = self.qkv(x).view(-1, self.window**3, 3, self.num_heads, chns // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        rate = self.attn_drop if self.training else 0.0
        if rate and x.device.type == "cpu" and not torch.compiler.is_compiling():
            out = attention_with_dropout(q, k, v, term, rate)
        else:
            out = scaled_dot_product_attention(q, k, v, attn_mask=term, dropout_p=rate)
        return out.transpose(1, 2).reshape(rows, chns)


def attention_with_dropout(q: Tensor, k: Tensor, v: Tensor, term: Tensor, rate: float) -> Tensor:
    """As scaled_dot_product_attention, which on a CPU has no fast way with dropout; [windows, heads, T, d] each."""
    windows, heads, tokens, dim = q.shape
    terms = term.expand(windows, -1, -1, -1).reshape(-1, tokens, tokens)
    weights = torch.baddbmm(terms, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=dim**-0.5).softmax(-1)
    return (dropout(weights, rate, training=True) @ v.flatten(0, 1)).view(windows, heads, tokens, dim)


class Mlp(nn.Module):
    """Two layers with exact GELU, token by token."""

    def __init__(self, chns: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(chns, MLP_RATIO * chns)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(MLP_RATIO * chns, chns)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        outputs = by_chunks(self.layers, x, max(1, CHUNK // self.fc1.out_features))
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def layers(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class SwinBlock(nn.Module):
    """y = x + DropPath(attention(norm1(x))); y + DropPath(mlp(norm2(y)))."""

    def __init__(self, chns: int, num_heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(chns)
        self.attn = WindowAttention(chns, num_heads, window, dropout)
        self.drop_path = DropPath(DROP_PATH)
        self.norm2 = nn.LayerNorm(chns)
        self.mlp = Mlp(chns, dropout)

    def forward(self, x: Tensor, batch: int, layout: WindowLayout) -> Tensor:
        # CUDA's autocast normalises to float32: windows are gathered in half of that
        x = x + self._drop_path(self.attn(self.norm1(x).to(x.dtype), layout), batch)
        return x + self._drop_path(self.mlp(self.norm2(x)), batch)

    def _drop_path(self, x: Tensor, batch: int) -> Tensor:
        # Whole samples are dropped: the batch axis has to be there.
        return self.drop_path(x.view(batch, -1, x.shape[1])).view(x.shape) if self.training else x


class WindowTransformer(nn.Module):
    """`depth` Swin blocks on a volume, every second one shifted."""

    def __init__(self, chns: int, depth: int, num_heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(chns, num_heads, window, dropout) for _ in range(depth))

    def forward(self, x: Tensor, layouts: tuple[WindowLayout, WindowLayout]) -> Tensor:
        """[N, C, D, H, W] to the same.

        Args:
            x: the volume; without a copy if it is channels-last.
            layouts: of the plain and of the shifted windows.
        """
        batch, chns, *size = x.shape
        tokens = x.permute(0, 2, 3, 4, 1).reshape(-1, chns)
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, batch, layouts[i % 2])
        return tokens.view(batch, *size, chns).permute(0, 4, 1, 2, 3)
