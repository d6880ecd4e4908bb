"""Every model on a GPU that does not exist: tensors without data pretend to be on cuda:0.

Forward and denoising in training, at real sizes. Mixed devices or a value that the host would
have to wait for is an error or is counted.
"""

from dataclasses import replace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from groupdetr_d2 import structures
from groupdetr_d2.config import build_config
from groupdetr_d2.layers import deform_sampling
from groupdetr_d2.losses.box2d import BoxTargets
from tests.conftest import ROOT, distinct_models

K, SIZES, COUNTS = 11, [(800, 1066), (736, 1333)], [7, 5]

FEW_LAYERS = [
    *("MODEL.DEVICE", "cpu", "MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 2),
    *("MODEL.SWIN.DEPTHS", [1, 1, 2, 1], "MODEL.SWIN.EMBED_DIM", 48),
]


class Dispatched(TorchDispatchMode):
    """Counts operations, and those whose result goes from the device to the host."""

    def __init__(self):
        super().__init__()
        self.number, self.to_host = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        out = func(*args, **(kwargs or {}))
        if "cuda" in devices_of((args, kwargs)) and "cpu" in devices_of(out):
            self.to_host.append(str(func))
        return out


def devices_of(values):
    return {x.device.type for x in tree_leaves(values) if isinstance(x, torch.Tensor)}


def on_cuda(value):
    return torch.empty(value.shape, dtype=value.dtype, device="cuda:0")


def move_to_cuda(model):
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            fake = torch.nn.Parameter(on_cuda(value), value.requires_grad)
            module.register_parameter(name, fake)
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, on_cuda(value))


def inputs_of(cfg):
    """A batch, and its images on the device; the matrices of cameras are on the host."""
    if cfg.MODEL.META_ARCHITECTURE != "GroupPETR":
        return [], ImageList(torch.empty(2, 3, 800, 1333, device="cuda:0"), SIZES)
    sample = {"lidar2img": torch.eye(4, dtype=torch.float64).repeat(6, 1, 1)}
    images = torch.empty(2, 6, 3, 320, 800, device="cuda:0")
    return [sample, sample], ImageList(images, [(320, 800), (320, 784)])


@pytest.fixture
def plain_sampling(monkeypatch):
    """Triton's kernels are not PyTorch's operations: the reference stands for them."""
    monkeypatch.setattr(deform_sampling, "choose", lambda device: deform_sampling.reference)
    structures._sizes.cache_clear()  # tensors without data are of one test alone
    yield
    structures._sizes.cache_clear()


@pytest.mark.parametrize("config", distinct_models())
def test_every_model_on_a_gpu_without_one(config, plain_sampling, monkeypatch):
    """Devices agree, nothing waits for the device, and no operation is added for a group."""
    cfg = build_config(str(ROOT / config), [*FEW_LAYERS, "MODEL.DETR.NUM_GROUPS", K])
    model, numbers = build_model(cfg).train(), []
    with FakeTensorMode():
        move_to_cuda(model)
        labels = torch.zeros(sum(COUNTS), dtype=torch.long, device="cuda:0")
        targets = BoxTargets(labels, torch.rand(len(labels), 4, device="cuda:0"), counts=COUNTS)
        batch, images = inputs_of(cfg)
        monkeypatch.setattr(model, "preprocess_image", lambda batch: images)
        with Dispatched() as encoding:
            memory = model.encode(batch)
        for k in (1, K):
            with Dispatched() as dispatched:
                groups = replace(model.groups, num_groups=k)
                found = model.head.decode(memory, groups, targets)
            assert found.logits.shape[2] == k * model.groups.num_queries
            assert devices_of(list(vars(found).values())) == {"cuda"}
            assert not encoding.to_host and not dispatched.to_host
            numbers.append(dispatched.number)
    few, many = numbers
    assert many <= 1.02 * few  # a few views more, where one group needs none


def test_a_value_for_the_host_is_seen():
    with FakeTensorMode(), Dispatched() as dispatched:
        x = torch.ones(2, device="cuda:0")
        x.sum().cpu()
        assert len(dispatched.to_host) == 1
        with pytest.raises(Exception, match="local_scalar_dense"):
            x.sum().item()
