"""PETR (Liu et al., ECCV 2022, arXiv 2203.05625) and PETRv2 (ICCV 2023, arXiv 2206.01256).

Queries are points in space. So are the cells of the cameras' feature maps: the position of a cell
is an embedding of points along its ray, so that DETR's decoder finds objects in space from
images. PETRv2 adds the views of an earlier frame, aligned by their matrices alone.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..groups import QueryGroups
from ..layers.attention import MultiheadAttention
from ..layers.autocast import without_autocast
from ..layers.initialisation import xavier_init
from ..layers.mlp import MLP
from ..layers.position_encoding import inverse_sigmoid, sine_embedding, view_position_embedding
from ..modeling.box3d_predictor import Box3DPredictor, ParallelBoxHead, petr_box_head
from ..modeling.cross_attention import CrossAttention
from ..modeling.decoder import Decoder, DecoderLayer
from ..modeling.encoder import build_ffn
from ..modeling.head import DETRHead, build_groups
from ..modeling.queries import FixedQueryPosition, QueryBank, for_each_image
from ..registry import VARIANT_REGISTRY
from ..structures import Memory, Queries, ViewMemory, Views

NUM_FEATS = 128  # channels of the sine embedding of an axis


class FeaturePyramid(nn.Module):
    """Adds coarser feature maps to the finest one, which alone is returned.

    Args:
        channels: of the feature maps, fine to coarse.
    """

    def __init__(self, channels: Sequence[int], d_model: int):
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, d_model, 1) for c in channels)
        self.output = nn.Conv2d(d_model, d_model, 3, padding=1)
        for convolution in (*self.laterals, self.output):
            nn.init.xavier_uniform_(convolution.get_parameter("weight"))
            nn.init.zeros_(convolution.get_parameter("bias"))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, channels, H, W) each to (B, C, H, W) of the first."""
        projected = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        coarse = projected[-1]
        for x in projected[-2::-1]:
            coarse = x + F.interpolate(coarse, x.shape[2:], mode="nearest")
        return self.output(coarse)


class CameraPosition(nn.Module):
    """The position of a cell: points along its ray, and its view, row and column.

    It computes in float32, whatever autocast does around it.

    Args:
        num_depths: points of a ray; their distances grow as those of CaDDN (Reading et al., CVPR
            2021) do.
        first_depth: of the nearest point, in metres.
        position_range: x, y, z of the lowest and of the highest corner of the space of these
            points, in metres.
        gate: weighs the embedding of the ray by the cell's features (PETRv2); None does not.
    """

    low: Tensor
    extent: Tensor
    depths: Tensor

    def __init__(
        self,
        d_model: int,
        *,
        num_depths: int,
        first_depth: float,
        position_range: Sequence[float],
        gate: nn.Module | None,
    ):
        super().__init__()
        self.ray = MLP(3 * num_depths, 4 * d_model, d_model, 2)
        self.place = MLP(3 * NUM_FEATS, 4 * d_model, d_model, 2)
        self.gate = gate
        low, high = torch.tensor(position_range, dtype=torch.float32).view(2, 3)
        depths = increasing_depths(num_depths, first_depth, float(high[0]))
        for name, value in (("low", low), ("extent", high - low), ("depths", depths)):
            self.register_buffer(name, value, False)

    def forward(self, features: Tensor, views: Views, shape: tuple[int, int]) -> Tensor:
        """Embeds the cells of feature maps of a (height, width), (B, V, H*W, C).

        Args:
            features: (B, V, H*W, C), which the gate reads.
        """
        dtype = self.low.dtype
        with without_autocast(features.device.type):
            rays = self.ray(self.points(views, shape).to(dtype))  # (B, V, H*W, C)
            if self.gate is not None:
                rays = rays * self.gate(features.to(dtype)).sigmoid()
            cells = view_position_embedding(cell_mask(views, shape), NUM_FEATS).flatten(2, 3)
            return rays + self.place(cells.to(dtype))

    def points(self, views: Views, shape: tuple[int, int]) -> Tensor:
        """Computes the logits of the points of every cell, (B, V, H*W, 3 * num_depths).

        A cell stands at its upper left corner, as in the official code.
        """
        device, (height, width) = self.low.device, shape
        y = torch.arange(height, device=device, dtype=torch.float32) * (views.size[0] / height)
        x = torch.arange(width, device=device, dtype=torch.float32) * (views.size[1] / width)
        y, x = torch.meshgrid(y, x, indexing="ij")
        pixels = torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1)  # (H*W, 3)
        rotation, origin = views.img2lidar[..., :3, :3], views.img2lidar[..., :3, 3]
        rays = pixels @ rotation.transpose(-1, -2)  # (B, V, H*W, 3), at depth 1
        points = rays[..., None, :] * self.depths[:, None] + origin[:, :, None, None]
        relative = (points - self.low) / self.extent  # (B, V, H*W, depths, 3)
        return inverse_sigmoid(relative.clamp(0, 1)).flatten(3)


def increasing_depths(number: int, first: float, last: float) -> Tensor:
    """Computes depths (number,) in metres whose distances grow linearly, from the first on."""
    index = torch.arange(number, dtype=torch.float32)
    return first + (last - first) / (number * (number + 1)) * index * (index + 1)


def cell_mask(views: Views, shape: tuple[int, int]) -> Tensor:
    """Resizes the padding mask to cells by nearest neighbour, (B or 1, V, H, W) bool."""
    number, mask = views.img2lidar.shape[1], views.padding_mask
    if mask is None:  # the same for all samples
        return torch.zeros(1, number, *shape, dtype=torch.bool, device=views.img2lidar.device)
    resized = F.interpolate(mask[:, None].float(), size=shape).bool()  # (B, 1, H, W)
    return resized.expand(-1, number, -1, -1)


class ViewNeck(nn.Module):
    """The neck of several views: one feature map of each, and positions in space."""

    def __init__(
        self, in_features: Sequence[str], pyramid: nn.Module, position: nn.Module, d_model: int
    ):
        super().__init__()
        self.in_features = list(in_features)
        self.pyramid, self.position = pyramid, position
        self.projection = nn.Linear(d_model, d_model)

    def forward(self, features: Mapping[str, Tensor], views: Views) -> ViewMemory:
        """Returns the memory of all views (B, V*H*W, C).

        Args:
            features: (B*V, channels, H, W) by name.
        """
        maps = self.pyramid([features[name] for name in self.in_features])  # (B*V, C, H, W)
        shape = (maps.shape[2], maps.shape[3])
        number = views.img2lidar.shape[1]
        cells = maps.flatten(2).transpose(1, 2).unflatten(0, (-1, number))  # (B, V, H*W, C)
        cells = self.projection(cells)
        pos = self.position(cells, views, shape)
        mask = None if views.padding_mask is None else cell_mask(views, shape).flatten(1)
        return ViewMemory(
            features=cells.flatten(1, 2),
            pos=pos.flatten(1, 2),
            padding_mask=mask,
            spatial_shapes=(shape,) * number,
            interval=views.interval,
        )


class PointQueries(nn.Module):
    """PETR's queries: learned points in the space of boxes, no content yet.

    A point is used as it is, without a sigmoid; it may leave [0, 1].

    Args:
        spread: the standard deviation among the embeddings of the points to begin with; 0 leaves
            what the official initialisation gives, about 0.05, with which queries are nearly alike.
    """

    def __init__(self, groups: QueryGroups, d_model: int, spread: float):
        super().__init__()
        self.bank = QueryBank(groups, 3)
        self.position = MLP(3 * NUM_FEATS, d_model, d_model, 2)
        nn.init.uniform_(self.bank.weight)
        if spread and len(self.bank.weight) > 1:
            self._spread(spread)

    @torch.no_grad()
    def _spread(self, deviation: float) -> None:
        """Scales and shifts the embeddings of the points to a mean of 0 and a deviation."""
        points, last = self.bank.weight, self.position.layers[-1]
        last.weight.mul_(deviation / self._embed(points).std(0, correction=0).mean())
        last.bias.sub_(self._embed(points).mean(0))

    def _embed(self, points: Tensor) -> Tensor:
        """Embeds points (K*N, 3) as (K*N, C)."""
        return self.position(sine_embedding(points, NUM_FEATS).to(points.dtype))

    def forward(self, memory: Memory, groups: QueryGroups) -> Queries:
        """Returns queries of (B, K*N, .)."""
        points = self.bank(groups)  # (K*N, 3)
        pos = self._embed(points)
        reference, pos = (for_each_image(x, memory) for x in (points, pos))
        return Queries(content=torch.zeros_like(pos), reference=reference, pos=pos)


@VARIANT_REGISTRY.register()
def petr(cfg, backbone_shape: Mapping[str, ShapeSpec]) -> DETRHead:
    """Builds the head of PETR, whose decoder layers share their class and box heads."""
    d_model = cfg.MODEL.DETR.HIDDEN_DIM
    return build_petr_head(
        cfg, backbone_shape, gate=None, make_box_head=lambda: petr_box_head(d_model), shared=True
    )


@VARIANT_REGISTRY.register()
def petrv2(cfg, backbone_shape: Mapping[str, ShapeSpec]) -> DETRHead:
    """Builds the head of PETRv2, whose decoder layers have class and box heads of their own."""
    d_model = cfg.MODEL.DETR.HIDDEN_DIM
    return build_petr_head(
        cfg,
        backbone_shape,
        gate=MLP(d_model, d_model, d_model, 2),
        make_box_head=lambda: ParallelBoxHead(d_model),
        shared=False,
    )


def build_petr_head(
    cfg,
    backbone_shape: Mapping[str, ShapeSpec],
    *,
    gate: nn.Module | None,
    make_box_head: Callable[[], nn.Module],
    shared: bool,
) -> DETRHead:
    """Builds what PETR and PETRv2 have in common from MODEL.DETR.*."""
    detr, space = cfg.MODEL.DETR, cfg.MODEL.DETR.SPACE
    position = CameraPosition(
        detr.HIDDEN_DIM,
        num_depths=space.NUM_DEPTHS,
        first_depth=space.FIRST_DEPTH,
        position_range=space.POSITION_RANGE,
        gate=gate,
    )
    channels = [backbone_shape[name].channels for name in detr.IN_FEATURES]
    pyramid = FeaturePyramid(channels, detr.HIDDEN_DIM)
    decoder = Decoder(
        lambda i: build_layer(cfg),
        detr.DEC_LAYERS,
        FixedQueryPosition(),
        nn.LayerNorm(detr.HIDDEN_DIM),
        refine=False,
        recompute=detr.RECOMPUTE,
    )
    xavier_init(decoder)
    return DETRHead(
        neck=ViewNeck(detr.IN_FEATURES, pyramid, position, detr.HIDDEN_DIM),
        encoder=nn.Identity(),
        queries=PointQueries(build_groups(cfg), detr.HIDDEN_DIM, space.QUERY_SPREAD),
        decoder=decoder,
        predictor=Box3DPredictor(
            make_box_head,
            d_model=detr.HIDDEN_DIM,
            num_classes=detr.NUM_CLASSES,
            num_layers=detr.DEC_LAYERS,
            shared=shared,
            box_range=space.BOX_RANGE,
            kept_range=space.POSITION_RANGE,
        ),
    )


def build_layer(cfg) -> DecoderLayer:
    """Builds a decoder layer of DETR."""
    detr = cfg.MODEL.DETR
    return DecoderLayer(
        MultiheadAttention(detr.HIDDEN_DIM, detr.NHEADS, detr.DROPOUT),
        CrossAttention(detr.HIDDEN_DIM, detr.NHEADS, detr.DROPOUT),
        build_ffn(detr.HIDDEN_DIM, detr.DIM_FEEDFORWARD, detr.DROPOUT),
        d_model=detr.HIDDEN_DIM,
        dropout=detr.DROPOUT,
    )
