"""Mask2Former (Cheng et al., CVPR 2022, arXiv 2112.01527): masks instead of boxes.

A query attends to the part of the memory that its mask of the layer before covers. The official
code has no padding mask: it treats padding as image, and so does this one, since its weights
expect it. An image's predictions therefore depend a little on how far it is padded.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..groups import QueryGroups
from ..layers.attention import MultiheadAttention, PackedAttention, attend
from ..layers.autocast import without_autocast
from ..layers.dropout import Dropout
from ..layers.position_encoding import SinePositionEmbedding
from ..modeling.decoder import Decoder
from ..modeling.deformable_encoder import DeformableEncoder
from ..modeling.encoder import build_ffn
from ..modeling.head import DETRHead, build_groups
from ..modeling.mask_predictor import MaskPredictor
from ..modeling.neck import Neck, normed
from ..modeling.queries import FixedQueryPosition, QueryBank, for_each_image
from ..registry import VARIANT_REGISTRY
from ..structures import Memory, Queries, QueryPosition

ENCODER_FFN = 1024  # MODEL.DETR.DIM_FEEDFORWARD is the decoder's


@dataclass(kw_only=True)
class MaskMemory(Memory):
    """Three levels, coarse to fine, and the map that masks are products with."""

    mask_features: Tensor  # (B, C, h, w)
    level_features: tuple[Tensor, ...]  # the same map at the size of each level, (B, C, H*W)


class PixelDecoder(nn.Module):
    """Mask2Former's pixel decoder: a deformable encoder, and one finer map on top of it.

    It computes in float32, whatever autocast does around it.

    Args:
        neck: projects the feature maps of the encoder, coarse to fine.
        finest: name of the feature map that the mask features add to the encoder's finest level.
        channels: of that feature map.
    """

    def __init__(self, neck: Neck, encoder: nn.Module, *, finest: str, channels: int, d_model: int):
        super().__init__()
        self.neck, self.encoder, self.finest = neck, encoder, finest
        self.lateral = _with_norm(nn.Conv2d(channels, d_model, 1, bias=False))
        self.output = _with_norm(nn.Conv2d(d_model, d_model, 3, padding=1, bias=False))
        self.mask_features = nn.Conv2d(d_model, d_model, 1)
        # tells the decoder levels apart; that of the encoder is another
        self.level_embedding = nn.Embedding(len(neck.projections), d_model)
        for convolution in (self.lateral[0], self.output[0], self.mask_features):
            nn.init.kaiming_uniform_(convolution.get_parameter("weight"), a=1)
        nn.init.zeros_(self.mask_features.get_parameter("bias"))

    def forward(self, features: Mapping[str, Tensor], padding_mask: Tensor | None) -> MaskMemory:
        """Returns the memory; padding counts as image.

        Args:
            features: the backbone's outputs by name, (B, channels, H, W) each.
            padding_mask: not read.
        """
        dtype = self.mask_features.weight.dtype
        with without_autocast(self.mask_features.weight.device.type):
            return self._decode({name: x.to(dtype) for name, x in features.items()})

    def _decode(self, features: dict[str, Tensor]) -> MaskMemory:
        memory = self.neck(features, None)
        encoded = self.encoder(memory)
        shapes = memory.spatial_shapes
        sizes = [height * width for height, width in shapes]
        levels = encoded.features.split(sizes, 1)  # (B, H*W, C) each, coarse to fine
        finest = levels[-1].transpose(1, 2).unflatten(2, shapes[-1])  # (B, C, H, W)
        lateral = self.lateral(features[self.finest])
        finer = F.interpolate(finest, lateral.shape[2:], mode="bilinear", align_corners=False)
        mask_features = self.mask_features(F.relu(self.output(lateral + finer)))
        pairs = zip(levels, self.level_embedding.weight, strict=True)
        return MaskMemory(
            features=torch.cat([level + embedding for level, embedding in pairs], 1),
            pos=memory.pos,
            spatial_shapes=shapes,
            mask_features=mask_features,
            level_features=tuple(_resized(mask_features, shape) for shape in shapes),
        )


def _with_norm(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.GroupNorm(32, convolution.out_channels))


@torch.no_grad()
def _resized(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resizes (B, C, h, w) to (B, C, H*W); a product commutes with it, being linear."""
    return F.interpolate(maps, shape, mode="bilinear", align_corners=False).flatten(2)


class MaskedAttention(PackedAttention):
    """Attention of each query to the cells of one level that its mask covers.

    Args:
        level: which level of the memory.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float, *, level: int):
        super().__init__(d_model, num_heads, dropout)
        self.level = level

    def forward(
        self, content: Tensor, position: QueryPosition, reference: Tensor, memory: MaskMemory
    ) -> Tensor:
        """Returns the update (B, Q, C); the reference (B, Q, C) is the query's mask embedding."""
        q, k, blocked = self.queries_and_keys(content, position, reference, memory)
        weight, bias = self.in_proj.weight.chunk(3)[2], self.in_proj.bias.chunk(3)[2]
        v = F.linear(memory.level(self.level).features, weight, bias)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(q, k, v, self.num_heads, blocked, dropout))

    def queries_and_keys(
        self, content: Tensor, position: QueryPosition, reference: Tensor, memory: MaskMemory
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Projects queries (B, Q, C) and keys (B, H*W, C); the mask is (B, 1, Q, H*W) bool."""
        level = memory.level(self.level)
        weights, biases = self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3)
        q = F.linear(content + position.pos, weights[0], biases[0])
        k = F.linear(level.features + level.pos, weights[1], biases[1])
        blocked = blocked_cells(reference, memory.level_features[self.level])
        return q, k, blocked[:, None]


@torch.no_grad()
def blocked_cells(embeddings: Tensor, features: Tensor) -> Tensor:
    """Finds the cells outside the masks of queries, (B, Q, H*W) bool.

    A query whose mask covers no cell sees all of them.

    Args:
        embeddings: (B, Q, C).
        features: (B, C, H*W).
    """
    blocked = embeddings @ features.to(embeddings.dtype) < 0
    return blocked & ~blocked.all(-1, keepdim=True)


class MaskedDecoderLayer(nn.Module):
    """Masked cross-attention, then self-attention within groups, then FFN; post-norm."""

    def __init__(
        self,
        self_attn: nn.Module,
        cross_attn: nn.Module,
        ffn: nn.Module,
        *,
        d_model: int,
        dropout: float,
    ):
        super().__init__()
        self.self_attn, self.cross_attn, self.ffn = self_attn, cross_attn, ffn
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(
        self, queries: Queries, position: QueryPosition, memory: Memory, groups: QueryGroups
    ) -> Tensor:
        """Returns the updated content (B, Q, C)."""
        content = queries.content
        update = self.cross_attn(content, position, queries.reference, memory)
        content = self.norms[0](content + self.dropout(update))
        update = groups.unfold(
            self.self_attn(groups.fold(content), groups.fold(position.pos), queries.attn_mask)
        )  # (B, Q, C)
        content = self.norms[1](content + self.dropout(update))
        return self.norms[2](content + self.dropout(self.ffn(content)))


class QueriesAlone(nn.Module):
    """The first layer, which leaves the learned queries as they are.

    Their predictions are supervised too, and their masks steer the next layer.
    """

    def forward(
        self, queries: Queries, position: QueryPosition, memory: Memory, groups: QueryGroups
    ) -> Tensor:
        """Returns the content (B, Q, C)."""
        return queries.content


class MaskQueries(nn.Module):
    """Mask2Former's queries: learned positions and learned content."""

    def __init__(self, groups: QueryGroups, d_model: int):
        super().__init__()
        self.bank = QueryBank(groups, d_model)
        self.content_bank = QueryBank(groups, d_model)

    def forward(self, memory: Memory, groups: QueryGroups) -> Queries:
        """Returns queries of (B, K*N, .), whose references the first layer does not read."""
        pos, content = (
            for_each_image(bank(groups), memory) for bank in (self.bank, self.content_bank)
        )
        return Queries(content=content, reference=torch.zeros_like(content), pos=pos)


@VARIANT_REGISTRY.register()
def mask2former(cfg, backbone_shape: Mapping[str, ShapeSpec]) -> DETRHead:
    """Builds the head from MODEL.DETR.*; the first of IN_FEATURES is that of the masks."""
    detr = cfg.MODEL.DETR
    finest, *levels = detr.IN_FEATURES
    decoder = Decoder(
        lambda i: build_masked_layer(cfg, i, num_levels=len(levels)),
        detr.DEC_LAYERS + 1,
        FixedQueryPosition(),
        nn.Identity(),  # the norm is the predictor's
        refine=True,
        recompute=detr.RECOMPUTE,
    )
    decoder.reset_parameters()
    return DETRHead(
        neck=build_pixel_decoder(cfg, backbone_shape),
        encoder=nn.Identity(),
        queries=MaskQueries(build_groups(cfg), detr.HIDDEN_DIM),
        decoder=decoder,
        predictor=MaskPredictor(
            d_model=detr.HIDDEN_DIM,
            num_classes=detr.NUM_CLASSES,
            stride=backbone_shape[finest].stride,
        ),
    )


def build_pixel_decoder(cfg, backbone_shape: Mapping[str, ShapeSpec]) -> PixelDecoder:
    """Builds the pixel decoder of the feature maps of MODEL.DETR.IN_FEATURES."""
    detr = cfg.MODEL.DETR
    finest, *levels = detr.IN_FEATURES
    levels = levels[::-1]  # coarse to fine, the order of the official code
    neck = Neck(
        levels,
        [normed(nn.Conv2d(backbone_shape[x].channels, detr.HIDDEN_DIM, 1)) for x in levels],
        position=SinePositionEmbedding(
            detr.HIDDEN_DIM // 2, detr.POSITION_TEMPERATURE, detr.POSITION_OFFSET
        ),
    )
    encoder = DeformableEncoder(
        detr.ENC_LAYERS,
        lambda: build_ffn(detr.HIDDEN_DIM, ENCODER_FFN, detr.DROPOUT),
        d_model=detr.HIDDEN_DIM,
        num_heads=detr.NHEADS,
        num_levels=len(levels),
        num_points=detr.NUM_POINTS,
        dropout=detr.DROPOUT,
        recompute=detr.RECOMPUTE,
    )
    encoder.reset_parameters()
    channels = backbone_shape[finest].channels
    return PixelDecoder(neck, encoder, finest=finest, channels=channels, d_model=detr.HIDDEN_DIM)


def build_masked_layer(cfg, i: int, *, num_levels: int) -> nn.Module:
    """Builds decoder layer `i`; layers attend to the levels in turn."""
    detr = cfg.MODEL.DETR
    if i == 0:
        return QueriesAlone()
    return MaskedDecoderLayer(
        MultiheadAttention(detr.HIDDEN_DIM, detr.NHEADS, detr.DROPOUT),
        MaskedAttention(detr.HIDDEN_DIM, detr.NHEADS, detr.DROPOUT, level=(i - 1) % num_levels),
        build_ffn(detr.HIDDEN_DIM, detr.DIM_FEEDFORWARD, detr.DROPOUT),
        d_model=detr.HIDDEN_DIM,
        dropout=detr.DROPOUT,
    )
