"""SAM-DETR (Zhang et al., CVPR 2022, arXiv 2203.06883): semantic-aligned matching.

A query does not carry its content along: each layer resamples it from the memory, at salient points
inside the query's box, so that queries and keys speak the same language. SAM-DETR++ (arXiv
2207.14172) goes through feature levels from coarse to fine. With SMCA, a Gaussian around each point
adds to the attention logits (Gao et al., ICCV 2021).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import attend
from ..layers.box_ops import box_cxcywh_to_xyxy
from ..layers.mlp import MLP
from ..layers.position_encoding import at_least_float32, sine_embedding
from ..layers.recompute import run_layer
from ..layers.roi_align import roi_align, sample_regions
from ..modeling.box_predictor import build_box_predictor
from ..modeling.decoder import Decoder, DecoderLayer
from ..modeling.deformable_encoder import build_deformable_encoder
from ..modeling.encoder import build_ffn, build_transformer_encoder
from ..modeling.head import DETRHead, build_groups
from ..modeling.neck import build_neck
from ..modeling.queries import AnchorQueries
from ..registry import VARIANT_REGISTRY
from ..structures import Memory, Queries, QueryPosition, sizes_of
from .conditional_detr import ConditionalSelfAttention

ROI_SIZE = 7
# numbers held at a time while regions are read: on a CPU they stay near its caches; elsewhere there
# is one part, whatever the number of groups, unless it would take 8 GiB in float32
CHUNKS = {"cpu": 2**24}
LARGEST_CHUNK = 2**31
SMCA_DIMS = 8  # five products make the Gaussian, three zeros align the head


class SemanticAligner(nn.Module):
    """Salient points inside each query's box, and the memory's content there, head by head."""

    def __init__(self, d_model: int, num_heads: int, outputs_per_head: int):
        super().__init__()
        hidden = 2 * d_model
        self.num_heads = num_heads
        self.reduce = nn.Conv2d(d_model, d_model // 4, 1)
        self.points = nn.Sequential(
            nn.Linear(d_model // 4 * ROI_SIZE**2, d_model),
            nn.ReLU(),
            nn.Linear(d_model, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs_per_head * num_heads),
        )
        nn.init.zeros_(self.points[-1].get_parameter("bias"))

    def forward(self, reference: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Samples the memory at salient points of each box.

        Args:
            reference: (B, Q, 4) boxes in [0, 1] of the unpadded image.

        Returns:
            contents (B, Q, heads, C), and the output of the points' network, (B, Q, outputs).
        """
        feature_map = memory.features.unflatten(1, memory.spatial_shapes[0])  # (B, H, W, C)
        extent = memory.valid_extents().repeat(1, 1, 2)  # (B, 1, 4)
        rois = (box_cxcywh_to_xyxy(reference) * extent).detach()
        if torch.compiler.is_compiling():  # an export has one part, whatever the image's size
            return self._sample(feature_map, rois)
        chunk = CHUNKS.get(rois.device.type, LARGEST_CHUNK)
        columns = len(rois) * ROI_SIZE * feature_map[0, :, 0].numel()  # numbers of a region
        # features of all regions would be the largest tensor of the model: a part at a time, and
        # backward makes them anew
        parts = [
            run_layer(self._sample, feature_map, part, recompute=True)
            for part in rois.split(max(1, chunk // columns), dim=1)
        ]
        contents, points = zip(*parts, strict=True)
        return torch.cat(contents, 1), torch.cat(points, 1)

    def _sample(self, feature_map: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        regions = roi_align(feature_map, rois, ROI_SIZE)  # (B, R, 7, 7, C)
        weight = self.reduce.weight[:, :, 0, 0]  # a convolution of 1 x 1
        reduced = F.relu(F.linear(regions, weight, self.reduce.bias))
        points = self.points(reduced.permute(0, 1, 4, 3, 2).flatten(2))  # (B, R, outputs)
        grid = at_least_float32(points[..., : 2 * self.num_heads]).tanh()
        return sample_regions(regions, grid.unflatten(2, (-1, 2))), points


class SemanticAlignedCrossAttention(nn.Module):
    """Cross-attention whose queries are resampled from the memory; keys are the same in each head.

    Args:
        gaussian: whether SMCA's Gaussians are added.
        level: the feature level to attend to.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float, *, gaussian: bool, level: int):
        super().__init__()
        self.level = level
        self.num_heads, self.dropout, self.gaussian = num_heads, dropout, gaussian
        self.aligner = SemanticAligner(d_model, num_heads, 4 if gaussian else 2)
        self.content_gate = nn.Linear(d_model, num_heads * d_model)
        self.position_gate = nn.Linear(d_model, num_heads * d_model)
        self.q_content, self.k_content = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.q_sine = MLP(d_model, d_model, d_model, 2)
        self.k_sine = MLP(d_model, d_model, d_model, 2)
        self.v, self.out_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, content: Tensor, position: QueryPosition, reference: Tensor, memory: Memory
    ) -> Tensor:
        """Returns the update (B, Q, C); `content` only gates what is resampled."""
        memory = memory.level(self.level)
        q, k = self.queries_and_keys(content, reference, memory)
        return self.out_proj(self._attend(q, k, memory))

    def queries_and_keys(
        self, content: Tensor, reference: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """Returns (B, Q, heads * C) and (B, S, heads * C), Gaussians add a few channels."""
        sampled, outputs = self.aligner(reference, memory)  # (B, Q, heads, C), (B, Q, .)
        per_head = (self.num_heads, content.shape[-1])
        offset = outputs[..., : 2 * self.num_heads].tanh().unflatten(-1, (-1, 2))
        points = reference[:, :, None, :2] + 0.5 * reference[:, :, None, 2:] * offset
        with torch.no_grad():
            sine = sine_embedding(points, content.shape[-1] // 2)  # (B, Q, heads, C)
        sampled = sampled * self.content_gate(content).sigmoid().unflatten(-1, per_head)
        sine = sine * self.position_gate(content).sigmoid().unflatten(-1, per_head)
        q = self.q_content(sampled) + self.q_sine(sine)  # (B, Q, heads, C)
        k = self.k_content(memory.features) + self.k_sine(memory.pos)  # (B, S, C)
        if self.gaussian:
            spread = outputs[..., 2 * self.num_heads :].unflatten(-1, (-1, 2))
            centers = points * memory.valid_extents()[:, None]  # in cells
            q, k = append_gaussian(q, k, centers, spread, memory)
        k = k[:, :, None].expand(-1, -1, self.num_heads, -1)  # (B, S, heads, C)
        return q.flatten(2), k.flatten(2)

    def _attend(self, q: Tensor, k: Tensor, memory: Memory) -> Tensor:
        """Attends; Gaussians need float32, since their square cancels in half precision."""
        mask, v = memory.padding_mask, self.v(memory.features)
        attn_mask = None if mask is None else mask[:, None, None]  # (B, 1, 1, S)
        dropout = self.dropout if self.training else 0.0
        if not self.gaussian:
            return attend(q, k, v, self.num_heads, attn_mask, dropout)
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = (at_least_float32(x) for x in (q, k, v))
            return attend(q, k, v, self.num_heads, attn_mask, dropout)


def append_gaussian(
    q: Tensor, k: Tensor, centers: Tensor, spread: Tensor, memory: Memory
) -> tuple[Tensor, Tensor]:
    """Appends channels that add -sum((center - cell)^2 spread^2) / 8 to the attention logits.

    The square is a sum of products of a query's and a key's numbers, so that no map of queries x
    keys is needed. `attend` divides by the root of the head size, which is made up for.

    Args:
        q, k: (B, Q, heads, C) and (B, S, C).
        centers, spread: (B, Q, heads, 2), x before y, in cells.
    """
    ((height, width),) = memory.spatial_shapes
    y, x = torch.meshgrid(
        torch.arange(height, device=k.device) + 0.5,
        torch.arange(width, device=k.device) + 0.5,
        indexing="ij",
    )
    cells = torch.stack([x, y], -1).flatten(0, 1).to(centers.dtype)  # (S, 2)
    middle = sizes_of(memory.spatial_shapes, cells) / 2  # small numbers keep the digits
    cells, centers = cells - middle, centers - middle
    weight = spread.to(centers.dtype) ** 2 / 8
    parts = [-(centers**2 * weight).sum(-1, keepdim=True), 2 * centers * weight, -weight]
    of_query = torch.cat(parts, -1)  # (B, Q, heads, 5)
    of_key = torch.cat([torch.ones_like(cells[:, :1]), cells, cells**2], -1)  # (S, 5)
    size = q.shape[-1]
    scale = ((size + SMCA_DIMS) / size) ** 0.5, (size + SMCA_DIMS) ** 0.5
    zeros = (0, SMCA_DIMS - of_key.shape[-1])
    q = torch.cat([q.to(of_query.dtype) * scale[0], F.pad(of_query * scale[1], zeros)], -1)
    of_key = F.pad(of_key, zeros).expand(k.shape[0], -1, -1)
    return q, torch.cat([k.to(of_key.dtype), of_key], -1)


class CenterQueryPosition(nn.Module):
    """Query positions from the box's centre, without gradient as in the official code."""

    def __init__(self, d_model: int):
        super().__init__()
        self.num_feats = d_model // 2

    @torch.no_grad()
    def forward(self, layer: int, queries: Queries, memory: Memory) -> QueryPosition:
        """Returns positions (B, Q, C), for self-attention alone."""
        return QueryPosition(sine_embedding(queries.reference[..., :2], self.num_feats))


@VARIANT_REGISTRY.register()
def sam_detr(cfg, backbone_shape) -> DETRHead:
    """Builds SAM-DETR, or with several feature maps SAM-DETR++, from MODEL.DETR.*."""
    detr = cfg.MODEL.DETR
    d_model, num_heads, dropout = detr.HIDDEN_DIM, detr.NHEADS, detr.DROPOUT
    num_levels = len(detr.IN_FEATURES)

    def make_layer(i: int) -> DecoderLayer:
        level = num_levels - 1 - i * num_levels // detr.DEC_LAYERS  # from coarse to fine
        return DecoderLayer(
            ConditionalSelfAttention(d_model, num_heads, dropout),
            SemanticAlignedCrossAttention(
                d_model, num_heads, dropout, gaussian=detr.SAM.SMCA, level=level
            ),
            build_ffn(d_model, detr.DIM_FEEDFORWARD, dropout),
            d_model=d_model,
            dropout=dropout,
        )

    encoder = build_sam_encoder(cfg)
    decoder = Decoder(
        make_layer,
        detr.DEC_LAYERS,
        CenterQueryPosition(d_model),
        nn.Identity(),
        refine=True,
        recompute=detr.RECOMPUTE,
    )
    encoder.reset_parameters()
    decoder.reset_parameters()
    return DETRHead(
        neck=build_neck(cfg, backbone_shape),
        encoder=encoder,
        queries=AnchorQueries(build_groups(cfg), d_model),
        decoder=decoder,
        predictor=build_box_predictor(cfg, shared=False, eps=1e-5),
    )


def build_sam_encoder(cfg) -> nn.Module:
    """Builds DETR's encoder for one level; for several the deformable one with half the width."""
    detr = cfg.MODEL.DETR
    num_levels = len(detr.IN_FEATURES)
    width = detr.DIM_FEEDFORWARD if num_levels == 1 else detr.DIM_FEEDFORWARD // 2

    def make_ffn() -> nn.Module:
        return build_ffn(detr.HIDDEN_DIM, width, detr.DROPOUT)

    if num_levels == 1:
        return build_transformer_encoder(cfg, make_ffn)
    return build_deformable_encoder(cfg, make_ffn)
