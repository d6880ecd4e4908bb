"""Time of a first stage with K groups: one product for all groups, against a loop over modules.

    python benchmarks/first_stage.py [--device cuda] [--num-groups 11]

Scores every position without gradient, then projects and predicts at 900 positions a group with it.
The fastest of five runs counts.
"""

import argparse
import sys
import time

import torch
import torch.nn.functional as F
from tabulate import tabulate

from groupdetr_d2.engine.memory import keep_freed_memory
from groupdetr_d2.groups import QueryGroups
from groupdetr_d2.modeling.two_stage import ProposalHeads

BATCH, NUM_CELLS, NUM_QUERIES, D_MODEL, NUM_CLASSES = 2, 6380, 900, 256, 80


def together(heads, groups, tokens, picked):
    """As the model does."""
    with torch.no_grad():
        scores = heads.scores(tokens[None], groups, False)
    features = heads.features(picked, groups)
    return scores, heads.class_head(features, groups), heads.box_head(features, groups)


def in_a_loop(heads, groups, tokens, picked):
    """Group after group, as with a list of modules."""
    outputs = []
    for k in range(groups.num_groups):

        def features(x, k=k):
            x = F.linear(x, heads.projection.weight[k], heads.projection.bias[k])
            return F.layer_norm(x, (D_MODEL,), heads.norm.weight[k], heads.norm.bias[k])

        with torch.no_grad():
            classes = heads.class_head.weight[k], heads.class_head.bias[k]
            scores = F.linear(features(tokens), *classes).amax(-1)
        x = features(picked[k])
        logits = F.linear(x, *classes)
        for i, layer in enumerate(heads.box_head.layers):
            x = F.linear(x, layer.weight[k], layer.bias[k])
            x = F.relu(x) if i < 2 else x
        outputs.append((scores, logits, x))
    return [torch.stack(x) for x in zip(*outputs, strict=True)]


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--num-groups", type=int, default=11)
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    groups = QueryGroups(NUM_QUERIES, args.num_groups)
    heads = ProposalHeads(groups, D_MODEL, NUM_CLASSES).to(args.device)
    tokens = torch.randn(BATCH * NUM_CELLS, D_MODEL, device=args.device)
    picked = torch.randn(args.num_groups, BATCH * NUM_QUERIES, D_MODEL, device=args.device)
    expected = in_a_loop(heads, groups, tokens, picked)
    for a, b in zip(together(heads, groups, tokens, picked), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    rows = []
    for name, run in (("in a loop", in_a_loop), ("together", together)):
        times = []
        for _ in range(6):
            start = time.perf_counter()
            _, logits, boxes = run(heads, groups, tokens, picked)
            (logits.sum() + boxes.sum()).backward()
            if args.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        rows.append({"": name, "s": min(times[1:])})
    for row in rows:
        row["x"] = f"{rows[0]['s'] / row['s']:.2f}"
    sys.stdout.write(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4f") + "\n")


if __name__ == "__main__":
    main()
