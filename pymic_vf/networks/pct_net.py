"""PCT-Net: parallel convolution and transformer (MIS-FM, section 3.1.4 and figure 3).

A multi-scale feature embedding at levels 0 and 1, a pyramid of PCT blocks at levels 2 to 4 and back, and a prediction
head at levels 1 and 0. The names in the state dict are those of the released weights, which have the embedding and the
head three times, once for each resolution mode; a network has those of its own mode alone.

Beyond the released implementation: any input size; `update_mode` 1; a proper index of relative positions where no
weights bring their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pymic_vf.errors import UserError
from pymic_vf.networks.conv_blocks import ConvBlock, DownBlock, OutConv, UpBlock, conv
from pymic_vf.networks.pct_net_settings import RESOLUTION_MODES, PCTNetSettings, parse_network_settings
from pymic_vf.networks.swin3d import WindowLayout, WindowTransformer, window_layout
from pymic_vf.sizes import Size

STAGES = ("train", "test")
Layouts = tuple[WindowLayout, WindowLayout]
"""Of the plain and of the shifted windows of a level."""


class Embedding(nn.Module):
    """Local features at levels 0 and 1, and the input of level 2."""

    def __init__(self, s: PCTNetSettings) -> None:
        super().__init__()
        (dim0, dim1), (c0, c1, c2) = s.dimensions, s.feature_chns[:3]
        self.proj = conv(s.in_chns, c0, dim0)
        self.conv0 = ConvBlock(c0, dim0, s.dropout[0])
        self.down1 = DownBlock(c0, c1, pool_dim=dim0, conv_dim=dim1)
        self.conv1 = ConvBlock(c1, dim1, s.dropout[1])
        self.down2 = DownBlock(c1, c2, pool_dim=dim1, conv_dim=3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x0 = self.conv0(self.proj(x))
        x1 = self.conv1(self.down1(x0))
        x2 = self.down2(x1)
        return x0, x1, x2


class PCTBlock(nn.Module):
    """A convolutional and a transformer branch on the same input, added."""

    def __init__(self, s: PCTNetSettings, level: int) -> None:
        super().__init__()
        chns, dropout, i = s.feature_chns[level], s.dropout[level], level - 2
        self.conv = ConvBlock(chns, 3, dropout)
        self.drop = nn.Dropout(dropout)
        self.trans = WindowTransformer(chns, s.depths[i], s.num_heads[i], s.window(level)[0], dropout)
        # In the released weights, and used nowhere.
        self.norm_layer = nn.LayerNorm(chns).requires_grad_(False)

    def forward(self, x: Tensor, layouts: Layouts) -> Tensor:
        return self.conv(x) + self.trans(self.drop(x), layouts)


class Pyramid(nn.Module):
    """Levels 2, 3 and 4, down and up again."""

    def __init__(self, s: PCTNetSettings) -> None:
        super().__init__()
        c2, c3, c4 = s.feature_chns[2:]
        self.down3 = DownBlock(c2, c3, pool_dim=3, conv_dim=3)
        self.down4 = DownBlock(c3, c4, pool_dim=3, conv_dim=3)
        self.up3 = UpBlock(c2, c3, dim=3)
        self.up4 = UpBlock(c3, c4, dim=3)
        self.convtrans_e2 = PCTBlock(s, 2)
        self.convtrans_e3 = PCTBlock(s, 3)
        self.convtrans_e4 = PCTBlock(s, 4)
        self.convtrans_d3 = PCTBlock(s, 3)
        self.convtrans_d2 = PCTBlock(s, 2)
        self.out_conv2 = OutConv(c2, s.class_num)
        self.out_conv3 = OutConv(c3, s.class_num)

    def forward(self, x2: Tensor, layouts: tuple[Layouts, Layouts, Layouts]) -> tuple[Tensor, Tensor]:
        layouts2, layouts3, layouts4 = layouts
        e2 = self.convtrans_e2(x2, layouts2)
        e3 = self.convtrans_e3(self.down3(e2), layouts3)
        e4 = self.convtrans_e4(self.down4(e3), layouts4)
        d3 = self.convtrans_d3(self.up4(e3, e4), layouts3)
        d2 = self.convtrans_d2(self.up3(e2, d3), layouts2)
        return d2, d3


class PredictionHead(nn.Module):
    """Levels 1 and 0 of the decoder."""

    def __init__(self, s: PCTNetSettings) -> None:
        super().__init__()
        (dim0, dim1), (c0, c1, c2) = s.dimensions, s.feature_chns[:3]
        self.up2 = UpBlock(c1, c2, dim=dim1)
        self.conv1 = ConvBlock(c1, dim1, s.dropout[1])
        self.up1 = UpBlock(c0, c1, dim=dim0)
        self.conv0 = ConvBlock(c0, dim0, s.dropout[0])
        self.out_conv0 = OutConv(c0, s.class_num)
        self.out_conv1 = OutConv(c1, s.class_num)

    def forward(self, x0: Tensor, x1: Tensor, d2: Tensor) -> tuple[Tensor, Tensor]:
        d1 = self.conv1(self.up2(x1, d2))
        d0 = self.conv0(self.up1(x0, d1))
        return d0, d1


class PCTNet(nn.Module):
    """PCT-Net as PyMIC builds its networks.

    Args:
        params: PyMIC's ``config["network"]``; see :data:`pymic_vf.networks.pct_net_settings.PCT_NET_KEYS`.

    Raises:
        ConfigError: with every mistake in `params`.
    """

    # What [network] compile = True compiles: padding and layouts, which follow the input's size, are made outside.
    compiled_method = "forward_padded"

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = parse_network_settings(params)
        self.stage = "train"
        mode = str(self.settings.resolution_mode)
        self.embeddings = nn.ModuleDict({mode: Embedding(self.settings)})
        self.pyramid_ct = Pyramid(self.settings)
        self.pred_heads = nn.ModuleDict({mode: PredictionHead(self.settings)})
        for module in (*self._unused_modules(), *self._frozen_modules()):
            module.requires_grad_(False)
        self.register_load_state_dict_pre_hook(_leave_out_other_modes)
        # Convolutions are faster so, and the tokens of the transformer need no transposition.
        self.to(memory_format=torch.channels_last_3d)

    @property
    def embedding(self) -> Embedding:
        return self.embeddings[str(self.settings.resolution_mode)]

    @property
    def head(self) -> PredictionHead:
        return self.pred_heads[str(self.settings.resolution_mode)]

    def set_stage(self, stage: str) -> None:
        """PyMIC's word for what the network is used for: "train" (validation included) or "test"."""
        if stage not in STAGES:
            raise UserError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
        self.stage = stage

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """[N, in_chns, D, H, W], any size, to [N, class_num, D, H, W]; not soft-maxed.

        At the stage "train" with `multiscale_pred`: the list of four, finest first, with the sizes of levels 0 to 3,
        rounded up.

        Raises:
            UserError: for an input of another rank or number of channels.
        """
        if x.dim() != 5 or x.shape[1] != self.settings.in_chns:
            raise UserError(
                f"PCTNet takes [N, {self.settings.in_chns}, D, H, W] (in_chns = {self.settings.in_chns}), "
                f"got {list(x.shape)}"
            )
        padded = self._pad(x).contiguous(memory_format=torch.channels_last_3d)
        outputs = self.forward_padded(padded, self._layouts(padded))
        strides = self.settings.strides
        outputs = [_crop(out, x.shape[2:], stride) for out, stride in zip(outputs, strides, strict=False)]
        return outputs if self._multiscale() else outputs[0]

    def forward_padded(self, x: Tensor, layouts: tuple[Layouts, Layouts, Layouts]) -> list[Tensor]:
        """All of the network, but for padding and cropping.

        Args:
            x: [N, in_chns, D, H, W], a size that suits the poolings.
            layouts: of the windows of levels 2, 3 and 4.
        """
        x0, x1, x2 = self.embedding(x)
        d2, d3 = self.pyramid_ct(x2, layouts)
        d0, d1 = self.head(x0, x1, d2)
        outputs = [self.head.out_conv0(d0)]
        if self._multiscale():
            outputs += [self.head.out_conv1(d1), self.pyramid_ct.out_conv2(d2), self.pyramid_ct.out_conv3(d3)]
        return outputs

    def _multiscale(self) -> bool:
        return self.settings.multiscale_pred and self.stage == "train"

    def _pad(self, x: Tensor) -> Tensor:
        """Zeros at the far end of each axis, up to what the poolings need."""
        stride = self.settings.strides[4]
        padded = [-(-side // step) * step for side, step in zip(x.shape[2:], stride, strict=True)]
        if self.training and len(x) == 1 and padded == list(stride):
            padded[2] += stride[2]  # batch normalisation needs more than one voxel at level 4
        depth, height, width = (after - before for after, before in zip(padded, x.shape[2:], strict=True))
        return F.pad(x, (0, width, 0, height, 0, depth)) if depth or height or width else x

    def _layouts(self, x: Tensor) -> tuple[Layouts, Layouts, Layouts]:
        """Those of levels 2, 3 and 4: windows as built, for the size of `x` padded."""
        layouts = []
        for level in (2, 3, 4):
            d, h, w = (side // step for side, step in zip(x.shape[2:], self.settings.strides[level], strict=True))
            window, shift = self.settings.window(level)
            layouts.append(tuple(window_layout(len(x), (d, h, w), window, s, x.device) for s in (0, shift)))
        return tuple(layouts)

    # Training some of the weights

    def _unused_modules(self) -> list[nn.Module]:
        """Heads that no output comes from: without a gradient they would stall distributed training."""
        if self.settings.multiscale_pred:
            return []
        return [self.head.out_conv1, self.pyramid_ct.out_conv2, self.pyramid_ct.out_conv3]

    def _frozen_modules(self) -> list[nn.Module]:
        """Everything but the prediction heads (the four output layers included) with `update_mode` 1."""
        if self.settings.update_mode == 0:
            return []
        heads = (self.pyramid_ct.out_conv2, self.pyramid_ct.out_conv3)
        return [self.embeddings, *(child for child in self.pyramid_ct.children() if child not in heads)]

    def train(self, mode: bool = True) -> PCTNet:
        """As ever, but with `update_mode` 1 what is frozen stays in eval mode.

        It is then a fixed function of the input: no dropout, and its batch normalisation uses its running statistics
        and leaves them as they are.
        """
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def get_parameters_to_update(self) -> list[nn.Parameter]:
        """PyMIC's hook: what the optimizer gets."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    # Loading weights

    def other_mode_names(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that belong to the embedding or the head of another resolution mode: ignored when loading.

        The released weights have all three.
        """
        others = [str(mode) for mode in RESOLUTION_MODES if mode != self.settings.resolution_mode]
        prefixes = tuple(f"{name}.{mode}." for name in ("embeddings", "pred_heads") for mode in others)
        return [name for name in names if name.startswith(prefixes)]

    def explain_mismatch(self, name: str) -> str | None:
        """Why weights of another shape may not fit the entry `name`: the keys that decide its shape, or None."""
        s = self.settings
        if self.other_mode_names([name]):
            return f"of resolution_mode {name.split('.')[1]}, {s.resolution_mode} here"
        if "relative_position_" in name:
            level = int(name.split(".")[1][-1])
            return _explain_window(s, level)
        if ".out_conv" in name and ".conv.2." in name:
            return f"class_num is {s.class_num} here"
        if name.endswith(".proj.weight") and name.startswith("embeddings."):
            return f"in_chns is {s.in_chns} and feature_chns starts with {s.feature_chns[0]} here"
        return None


def _leave_out_other_modes(net: PCTNet, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    own = [name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)]
    for name in net.other_mode_names(own):
        del state_dict[prefix + name]


def _explain_window(s: PCTNetSettings, level: int) -> str:
    window, wanted = s.window(level)[0], s.window_sizes[level - 2]
    table = f"its bias table has (2 * {window} - 1)^3 = {(2 * window - 1) ** 3} rows"
    if window == wanted:
        return f"the attention window of level {level} is {window} here: {table}"
    return (
        f"the attention window of level {level}, {wanted}, is not smaller than the smallest side of that level: "
        f"input_size {list(s.input_size)} is {list(s.level_size(level))} there, "
        f"so the window became {window} and {table}"
    )


def _crop(out: Tensor, size: Size, stride: Size) -> Tensor:
    d, h, w = (-(-side // step) for side, step in zip(size, stride, strict=True))
    return out if out.shape[2:] == (d, h, w) else out[:, :, :d, :h, :w]
