"""RoIAlign (Mask R-CNN, He et al., ICCV 2017) as two matrix products, and samples of its regions.

The mean of bilinear samples on a grid is a product of one factor per axis, so a region is
``A_y @ map @ A_x^T`` in every channel. On a CPU the backward of torchvision's `roi_align` scatters
sample by sample, which takes several times as long (docs/performance.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def hat(positions: Tensor, num_cells: int) -> Tensor:
    """Computes the bilinear weights (..., num_cells) of cells at positions (...,) in cells."""
    cells = torch.arange(num_cells, device=positions.device)
    return F.relu(1 - (positions[..., None] - cells).abs())


@torch.no_grad()
def axis_weights(start: Tensor, end: Tensor, num_cells: int, size: int) -> Tensor:
    """Computes the weight of each cell in each of `size` bins of a region, along one axis.

    As torchvision's `roi_align(aligned=True)` with its adaptive number of samples, ceil(length /
    size) a bin. Samples beyond the border by more than a cell count as zero.

    Args:
        start, end: (...,) borders of the regions in cells, no farther apart than `num_cells`.

    Returns:
        (..., size, num_cells)
    """
    length = end - start
    samples = (length / size).ceil().clamp(min=1)[..., None, None]  # of a bin
    index = torch.arange(num_cells // size + 1, device=start.device)
    bins = torch.arange(size, device=start.device)[:, None]
    position = (bins + (index + 0.5) / samples) * (length / size)[..., None, None]
    position = position + start[..., None, None] - 0.5  # (..., size, samples)
    counts = (
        (index < samples)
        & (position >= -1)
        & (position <= num_cells)
        & (length > 0)[..., None, None]
    )
    weights = hat(position.clamp(0, num_cells - 1), num_cells)
    return (weights * (counts / samples)[..., None]).sum(-2)


def roi_align(feature_map: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Pools regions of a feature map into size x size bins.

    Args:
        feature_map: (B, H, W, C).
        boxes: (B, R, 4) xyxy in cells, no larger than the map; they get no gradient.

    Returns:
        (B, R, size, size, C), x before y.
    """
    _, height, width, channels = feature_map.shape
    left, top, right, bottom = boxes.unbind(-1)
    along_x = axis_weights(left, right, width, size).to(feature_map.dtype)  # (B, R, size, W)
    along_y = axis_weights(top, bottom, height, size).to(feature_map.dtype)  # (B, R, size, H)
    columns = along_x.flatten(1, 2) @ feature_map.transpose(1, 2).flatten(2)  # (B, R*size, H*C)
    columns = columns.unflatten(2, (height, channels)).unflatten(1, (-1, size))
    return along_y[:, :, None] @ columns


def sample_regions(regions: Tensor, points: Tensor) -> Tensor:
    """Samples regions bilinearly; beyond their borders there are zeros.

    Args:
        regions: (..., size, size, C), x before y.
        points: (..., P, 2) x and y in [-1, 1], the outer borders of the first and last bin.

    Returns:
        (..., P, C)
    """
    size = regions.shape[-2]
    x, y = (((points + 1) * size - 1) / 2).unbind(-1)  # (..., P) in bins
    weights = hat(x, size)[..., None] * hat(y, size)[..., None, :]  # (..., P, size, size)
    return weights.flatten(-2).to(regions.dtype) @ regions.flatten(-3, -2)
