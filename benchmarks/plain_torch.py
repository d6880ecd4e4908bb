"""What our own CPU attention, dropout and allocator setting save, against plain PyTorch.

    python benchmarks/plain_torch.py --config-file F [--num-groups 11]

Every row is measured in a process of its own, in this order, in one run.
"""

import argparse
import multiprocessing
import sys

import torch.nn.functional as F
from tabulate import tabulate

from groupdetr_d2.analysis import step_cost
from groupdetr_d2.config import build_config
from groupdetr_d2.layers import attention, dropout

VARIANTS = ("ours", "default allocator", "PyTorch's dropout", "PyTorch's attention and dropout")


def plain_dropout():
    """`F.dropout` for both of our dropouts."""
    dropout.Dropout.forward = lambda self, x: F.dropout(x, self.p, self.training)
    dropout.ReluDropout.forward = lambda self, x: F.dropout(F.relu(x), self.p, self.training)


def plain_attention():
    """One call of PyTorch's attention, whatever the device, head sizes and dropout."""

    def attend(q, k, v, num_heads, attn_mask=None, dropout=0.0):
        q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        allowed = None if attn_mask is None else ~attn_mask
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        return out.transpose(1, 2).flatten(2)

    attention.attend = attend
    from groupdetr_d2.variants import conditional_detr

    conditional_detr.attend = attend


def measure(variant: str, config_file: str, num_groups: int, opts: list[str]) -> dict:
    """The cost of a step with one of VARIANTS."""
    if variant != VARIANTS[0]:
        step_cost.keep_freed_memory = lambda: None
    if variant in VARIANTS[2:]:
        plain_dropout()
    if variant == VARIANTS[3]:
        plain_attention()
    cfg = build_config(config_file, opts)
    cfg.MODEL.DETR.NUM_GROUPS = num_groups
    return step_cost.measure_step(cfg, (480, 640), 2, num_objects=7, steps=3, training=True)


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--num-groups", type=int, default=11)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    rows, first = [], None
    for variant in VARIANTS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            cost = pool.apply(measure, (variant, args.config_file, args.num_groups, args.opts))
        first = first or cost
        ratio = f"{cost['seconds'] / first['seconds']:.2f}"
        rows.append((variant, f"{cost['seconds']:.2f}", ratio, f"{cost['peak_mib']:.0f}"))
    headers = ("variant", "step s", "x time", "peak MiB")
    sys.stdout.write(tabulate(rows, headers, "github", disable_numparse=True) + "\n")


if __name__ == "__main__":
    main()
