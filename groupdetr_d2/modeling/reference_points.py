"""Memory positions and references, relative to an image and to its padded maps."""

import torch
from torch import Tensor

from ..structures import Memory


def cell_centers(memory: Memory) -> Tensor:
    """Computes every cell's centre relative to the unpadded image, (B, S, 2), x before y."""
    extents, centers = memory.valid_extents(), []
    for i, (height, width) in enumerate(memory.spatial_shapes):
        y, x = torch.meshgrid(
            torch.arange(height, device=extents.device) + 0.5,
            torch.arange(width, device=extents.device) + 0.5,
            indexing="ij",
        )
        grid = torch.stack([x, y], -1).flatten(0, 1)  # (H*W, 2)
        centers.append(grid[None] / extents[:, i, None])
    return torch.cat(centers, 1)


def on_padded_maps(reference: Tensor, memory: Memory) -> Tensor:
    """Maps (B, Q, 2 or 4) relative to the image to (B, Q, levels, 2 or 4) relative to each map."""
    ratios = memory.valid_ratios.repeat(1, 1, reference.shape[-1] // 2)  # (B, levels, 2 or 4)
    return reference[:, :, None] * ratios[:, None]
