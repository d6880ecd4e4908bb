"""MODEL.DETR.RECOMPUTE computes activations anew, with identical results."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from groupdetr_d2.layers import recompute
from tests.conftest import make_batch, small_model

CONFIGS = [
    "configs/ConditionalDETR/conditional_detr_R_50_12ep.yaml",
    "configs/DN-DETR/dn_detr_R_50_12ep.yaml",
    "configs/SAM-DETR/sam_detr_R_50_12ep.yaml",
    "configs/Deformable-DETR/deformable_detr_R_50_50ep.yaml",
    "configs/DINO/dino_4scale_R_50_12ep.yaml",
]


def losses_and_gradients(config, recompute):
    opts = ["MODEL.DETR.RECOMPUTE", recompute, "MODEL.DETR.DROPOUT", 0.1]
    model = small_model(2, *opts, config=config)
    torch.manual_seed(1)
    losses = model(make_batch())
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return losses, gradients


@pytest.mark.parametrize("config", CONFIGS)
def test_losses_and_gradients_are_identical(config):
    """With dropout, whose random numbers are drawn again."""
    (losses, gradients), (again, same) = (losses_and_gradients(config, x) for x in (False, True))
    assert all(torch.equal(losses[name], again[name]) for name in losses)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, same[name]), name


@pytest.mark.parametrize("config", CONFIGS)
def test_a_gpu_draws_its_random_numbers_again(config, monkeypatch):
    """PyTorch keeps the random state of devices that it sees among arguments which are tensors."""
    calls = []

    def spy(function, *args, **kwargs):
        calls.append([x.device.type for x in args if isinstance(x, torch.Tensor)])
        return checkpoint(function, *args, **kwargs)

    monkeypatch.setattr(recompute, "checkpoint", spy)
    losses_and_gradients(config, recompute=True)
    assert calls and all("cpu" in devices for devices in calls)


@pytest.mark.parametrize("config", CONFIGS)
def test_less_is_kept_for_backward(config):
    kept = []
    for recomputed in (False, True):
        model = small_model(2, "MODEL.DETR.RECOMPUTE", recomputed, config=config)
        seen = {}

        def pack(x, seen=seen):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            losses = model(make_batch())
        kept.append(sum(seen.values()))
        assert losses
    assert kept[1] < 0.8 * kept[0]
