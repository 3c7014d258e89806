"""The transformer branch of a PCT block: 3D Swin blocks on the tokens of all voxels.

MIS-FM, section 3.1.4 (P-MSA and SP-MSA); Swin Transformer (Liu et al. 2021), equations 3 and 4. Tokens are
[N * D * H * W, C], in the order of the volume: the memory of a channels-last [N, C, D, H, W] tensor as it is.
"""

from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pymic_vf.networks.windows import WindowLayout, from_windows, relative_position_index, to_windows

MLP_RATIO = 4
DROP_PATH = 0.2
TABLE_STD = 0.02


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias for each relative position.

    Padding tokens are zero before the projection to queries, keys and values, so they are its bias after it: windows
    are cut behind the projection, which then runs on real voxels only, as does the one at the end.
    """

    def __init__(self, chns: int, num_heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 3, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(chns, 3 * chns)
        self.attn_drop = dropout
        self.proj = nn.Linear(chns, chns)
        self.proj_drop = nn.Dropout(dropout)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=TABLE_STD)

    def position_bias(self) -> Tensor:
        """[heads, T, T]."""
        tokens = self.window**3
        rows = self.relative_position_bias_table.index_select(0, self.relative_position_index.flatten())
        return rows.T.reshape(self.num_heads, tokens, tokens)

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        chns, tokens = x.shape[1], self.window**3
        qkv = to_windows(self.qkv(x), self.qkv.bias, layout)
        qkv = qkv.view(-1, tokens, 3, self.num_heads, chns // self.num_heads)
        bias = self.position_bias().to(qkv.dtype)
        outputs, start = [], 0
        for count, mask in layout.groups:
            q, k, v = qkv[start : start + count].permute(2, 0, 3, 1, 4)
            term = bias if mask is None else bias + mask.to(bias.dtype)
            drop = self.attn_drop if self.training else 0.0
            out = scaled_dot_product_attention(q, k, v, attn_mask=term[None], dropout_p=drop)
            outputs.append(out.transpose(1, 2).reshape(count * tokens, chns))
            start += count
        windows = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        return self.proj_drop(self.proj(from_windows(windows, layout)))


class Mlp(nn.Module):
    """Two layers with exact GELU, token by token."""

    def __init__(self, chns: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(chns, MLP_RATIO * chns)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(MLP_RATIO * chns, chns)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
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
        x = x + self._drop_path(self.attn(self.norm1(x), layout), batch)
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
