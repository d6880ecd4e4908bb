"""The plain ViT of ViTDet (Li et al., 2022), and the feature pyramid on top of its last map.

Parameters have the names of Detectron2's ViT. That one imports timm, keeps the attention maps of
all blocks for backward, and recomputes by means of fairscale; this one does neither.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone, SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..errors import UserError
from ..layers.recompute import run_layer
from ..layers.relative_position import attend_on_grid, resize_table
from .backbone import check_in_features

# the feature maps that the pyramid can make of the last one of the ViT, by their relative size
SCALE_OF_LEVEL = {"p2": 4.0, "p3": 2.0, "p4": 1.0, "p5": 0.5}
TOP_LEVEL = "p6"  # half of p5


class GridAttention(nn.Module):
    """Self-attention among the cells of a grid, with decomposed relative positions or none.

    Args:
        dim: number of channels C.
        num_heads: number of attention heads.
        grid: side of the grid that the tables of relative positions are made for; 0 for no tables.
    """

    def __init__(self, dim: int, num_heads: int, grid: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.rel_pos_h = self.rel_pos_w = None
        if grid:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, dim // num_heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, dim // num_heads))

    def forward(self, x: Tensor) -> Tensor:
        """Attends among the cells of each grid (B, H, W, C)."""
        size = (x.shape[1], x.shape[2])
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, HW, C / heads) each
        if self.rel_pos_h is None or self.rel_pos_w is None:
            attended = F.scaled_dot_product_attention(q, k, v)
        else:
            attended = attend_on_grid(q, k, v, size, self.rel_pos_h, self.rel_pos_w)
        return self.proj(attended.transpose(1, 2).flatten(2).unflatten(1, size))


class Block(nn.Module):
    """A layer of the ViT: attention in windows or in the whole image, then a feed-forward network.

    Args:
        dim: number of channels C.
        num_heads: number of attention heads.
        window_size: side of a window in cells; 0 for attention in the whole image.
        grid: side of the grid of relative positions, 0 for none.
        drop_path: probability that a training image leaves out either half of the block.
        layer_scale: initial factor of each channel of both halves; 0 for no factors.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int = 0,
        grid: int = 0,
        drop_path: float = 0.0,
        layer_scale: float = 0.0,
    ):
        super().__init__()
        self.window_size = window_size
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = GridAttention(dim, num_heads, grid)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})
        self.drop_path = StochasticDepth(drop_path, "row")
        self.gamma_1 = self.gamma_2 = None
        if layer_scale:
            self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        """Computes the features (B, H, W, C) after the block."""
        x = x + self.drop_path(_scaled(self._attend(self.norm1(x)), self.gamma_1))
        hidden = F.gelu(self.mlp["fc1"](self.norm2(x)))
        return x + self.drop_path(_scaled(self.mlp["fc2"](hidden), self.gamma_2))

    def _attend(self, x: Tensor) -> Tensor:
        if not self.window_size:
            return self.attn(x)
        # cells beyond the edge are zeros that take part as keys, as in Detectron2
        windows, padded = windows_of(x, self.window_size)
        return image_of(self.attn(windows), padded)[:, : x.shape[1], : x.shape[2]]


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else x * gamma


def windows_of(x: Tensor, size: int) -> tuple[Tensor, tuple[int, int]]:
    """Cuts maps (B, H, W, C) into windows (B * windows, size, size, C).

    Returns:
        the windows, and the height and width that the maps were padded to with zeros.
    """
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
    padded = (x.shape[1], x.shape[2])
    x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3)
    return x.flatten(0, 2), padded


def image_of(windows: Tensor, padded: tuple[int, int]) -> Tensor:
    """Puts windows (B * windows, size, size, C) together to maps of the padded height and width."""
    size = windows.shape[1]
    rows, columns = padded[0] // size, padded[1] // size
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)


class PatchEmbed(nn.Module):
    """The embedding of square patches of an image: a convolution as wide as its stride."""

    def __init__(self, patch_size: int, in_channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Embeds images (B, channels, H, W) as grids of patches (B, h, w, C)."""
        return self.proj(x).permute(0, 2, 3, 1)


class ViT(Backbone):
    """A plain vision transformer, whose blocks attend in windows except for a few global ones.

    No mask tells it what is padding: padded cells are keys like all others, and the tables of
    positions are resized to the padded grid. What an image gives depends on how far it is padded.

    Args:
        embed_dim: number of channels C.
        depth: number of blocks.
        num_heads: number of attention heads.
        patch_size: side of a patch in pixels, which is the stride of the output.
        window_size: side of a window in patches.
        global_blocks: places of the blocks that attend in the whole image.
        drop_path_rate: probability that the last block is left out in training; it grows from 0
            with depth.
        pretrain_grid: side of the table of absolute positions in patches; 0 for no such table.
        relative_grid: side in patches of the grid that the global blocks' tables of relative
            positions are made for; 0 for no tables, in windows neither.
        layer_scale: initial factor of each channel of a block's two halves; 0 for no factors.
        in_channels: number of channels of an image.
        recompute: whether backward computes the activations of each block again.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        patch_size: int,
        window_size: int,
        global_blocks: Sequence[int],
        drop_path_rate: float = 0.0,
        pretrain_grid: int = 14,
        relative_grid: int = 0,
        layer_scale: float = 0.0,
        in_channels: int = 3,
        recompute: bool = False,
    ):
        super().__init__()
        self.embed_dim, self.patch_size, self.recompute = embed_dim, patch_size, recompute
        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim)
        self.pos_embed = None
        if pretrain_grid:
            self.pos_embed = nn.Parameter(torch.zeros(1, pretrain_grid**2, embed_dim))
        self.blocks = nn.ModuleList()
        for i in range(depth):
            is_global = i in global_blocks or not window_size
            block = Block(
                embed_dim,
                num_heads,
                window_size=0 if is_global else window_size,
                grid=relative_grid and (relative_grid if is_global else window_size),
                drop_path=drop_path_rate * i / max(depth - 1, 1),
                layer_scale=layer_scale,
            )
            self.blocks.append(block)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws linear maps and the table of positions as ViTDet does; biases become 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Computes of images (B, channels, H, W) the last block's map (B, C, h, w)."""
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + resize_table(self.pos_embed, (x.shape[1], x.shape[2]))
        for block in self.blocks:
            x = run_layer(block, x, recompute=self.recompute)
        return {"last_feat": x.permute(0, 3, 1, 2)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Describes the output."""
        # the pyramid takes powers of two alone; it is told the true stride afterwards
        return {"last_feat": ShapeSpec(channels=self.embed_dim, stride=16)}


class ViTPyramid(SimpleFeaturePyramid):
    """ViTDet's feature pyramid of a ViT, with the strides that belong to the size of a patch.

    Args:
        net: the ViT, or another backbone of one map with a `patch_size`.
        levels: names of the maps from fine to coarse, a part of "p2" to "p6" without gaps. With
            patches of 16 pixels, p4 has stride 16, p3 8, and so on.
        out_channels: number of channels of each map.

    Raises:
        UserError: a level would have no whole stride, as p2 with patches of 14 pixels.
    """

    def __init__(self, net: Backbone, levels: Sequence[str], out_channels: int):
        if "p2" in levels and net.patch_size % 4:
            raise UserError(
                f"MODEL.DETR.IN_FEATURES has p2, a quarter of a patch, and {net.patch_size} pixels "
                "cannot be quartered: leave p2 out"
            )
        scales = [SCALE_OF_LEVEL[level] for level in levels if level != TOP_LEVEL]
        top = LastLevelMaxPool() if TOP_LEVEL in levels else None
        super().__init__(net, "last_feat", out_channels, scales, top)
        strides = {name: 2 ** int(name[1:]) for name in levels}
        self._out_feature_strides = {k: s * net.patch_size // 16 for k, s in strides.items()}
        # p6 rounds up, so that its own stride needs no padding
        self._size_divisibility = net.patch_size * max(1, round(1 / min(scales)))


@BACKBONE_REGISTRY.register()
def build_vit_pyramid_backbone(cfg, input_shape: ShapeSpec) -> ViTPyramid:
    """Builds a plain ViT with a feature pyramid from MODEL.VIT.*, with the maps of IN_FEATURES.

    Raises:
        UserError: IN_FEATURES has a gap, or a number of MODEL.VIT.* does not fit the others.
    """
    vit, levels = cfg.MODEL.VIT, list(cfg.MODEL.DETR.IN_FEATURES)
    check_in_features(cfg, [*SCALE_OF_LEVEL, TOP_LEVEL])
    check_levels(levels)
    _check_blocks(vit)
    net = ViT(
        embed_dim=vit.EMBED_DIM,
        depth=vit.DEPTH,
        num_heads=vit.NUM_HEADS,
        patch_size=vit.PATCH_SIZE,
        window_size=vit.WINDOW_SIZE,
        global_blocks=vit.GLOBAL_BLOCKS,
        drop_path_rate=vit.DROP_PATH_RATE,
        pretrain_grid=vit.PRETRAIN_GRID if vit.ABSOLUTE_POSITION else 0,
        relative_grid=vit.RELATIVE_GRID if vit.RELATIVE_POSITION else 0,
        layer_scale=vit.LAYER_SCALE,
        in_channels=input_shape.channels,
        recompute=cfg.MODEL.DETR.RECOMPUTE,
    )
    return ViTPyramid(net, levels, vit.PYRAMID_CHANNELS)


def check_levels(levels: list[str]) -> None:
    """Checks that a pyramid can make these levels.

    Raises:
        UserError: they have a gap, or are p6 alone.
    """
    known = [*SCALE_OF_LEVEL, TOP_LEVEL]
    first = known.index(levels[0])
    if levels != known[first : first + len(levels)] or levels == [TOP_LEVEL]:
        raise UserError(
            f"MODEL.DETR.IN_FEATURES is {levels}: a pyramid has neighbouring levels of "
            f"{known}, fine to coarse, and p6 of p5"
        )


def _check_blocks(vit) -> None:
    beyond = [i for i in vit.GLOBAL_BLOCKS if not 0 <= i < vit.DEPTH]
    if beyond:
        raise UserError(
            f"MODEL.VIT.GLOBAL_BLOCKS has {beyond[0]}, but MODEL.VIT.DEPTH {vit.DEPTH} numbers "
            f"the blocks from 0 to {vit.DEPTH - 1}"
        )
    if vit.EMBED_DIM % vit.NUM_HEADS:
        raise UserError(
            f"MODEL.VIT.EMBED_DIM {vit.EMBED_DIM} is no multiple of MODEL.VIT.NUM_HEADS "
            f"{vit.NUM_HEADS}"
        )
    if vit.PATCH_SIZE not in (14, 16):
        raise UserError(f"MODEL.VIT.PATCH_SIZE is {vit.PATCH_SIZE}: it can be 14 or 16")
