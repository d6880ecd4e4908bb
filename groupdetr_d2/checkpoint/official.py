"""The common parts of official checkpoints: key names and 91 class columns."""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .files import CheckpointError

# the official heads' rows (index = COCO category id) that are COCO's 80 classes
COCO_CATEGORY_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
Rules = Sequence[tuple[str, str]]
StateDict = dict[str, Tensor]

# regular expressions and replacements, applied one after another; ours start with "head."
COMMON_RULES: Rules = [
    (r"^input_proj\.", "head.neck.projections.0."),
    (r"^class_embed\.", "head.predictor.class_heads.0."),
    (r"^bbox_embed\.", "head.predictor.layer_box_heads.0."),
    (r"\.self_attn\.in_proj_(weight|bias)$", r".self_attn.in_proj.\1"),
    (r"\.sa_([qk])content_proj\.", r".self_attn.\1_content."),
    (r"\.sa_([qk])pos_proj\.", r".self_attn.\1_pos."),
    (r"\.sa_v_proj\.", ".self_attn.v."),
    (r"\.ca_([qk])content_proj\.", r".cross_attn.\1_content."),
    (r"\.ca_qpos_sine_proj\.", ".cross_attn.q_sine."),
    (r"\.ca_([qk])pos_proj\.", r".cross_attn.\1_pos."),
    (r"\.ca_v_proj\.", ".cross_attn.v."),
    (r"\.linear1\.", ".ffn.0."),
    (r"\.activation\.weight$", ".ffn.1.0.weight"),
    (r"\.linear2\.", ".ffn.2."),
    (r"^(transformer\..*)\.norm1\.", r"\1.norms.0."),
    (r"^(transformer\..*)\.norm2\.", r"\1.norms.1."),
    (r"^(transformer\..*)\.norm3\.", r"\1.norms.2."),
    (r"^transformer\.", "head."),
]


def resnet_key(key: str) -> str | None:
    """Finds Detectron2's name of a torchvision ResNet's parameter in an official checkpoint."""
    match = re.match(r"^backbone\.0\.body\.(?:layer(\d)\.(\d+)\.)?(.*)$", key)
    if not match or key.endswith("num_batches_tracked"):
        return None
    stage, block, rest = match.groups()
    prefix = f"backbone.res{int(stage) + 1}.{block}." if stage else "backbone.stem."
    rest = re.sub(r"^downsample\.0\.", "shortcut.", rest)
    rest = re.sub(r"^downsample\.1\.", "shortcut.norm.", rest)
    return prefix + re.sub(r"^bn(\d)\.", r"conv\1.norm.", rest)


def rename(key: str, rules: Rules) -> str | None:
    """Finds our name of an official parameter, None if no rule gives it one."""
    if key.startswith("backbone.0.body."):
        return resnet_key(key)
    if key.startswith("backbone.0."):  # Swin's names are Detectron2's
        return key.replace("backbone.0.", "backbone.")
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key if key.startswith("head.") else None


def select_classes(name: str, value: Tensor, num_classes: int) -> Tensor:
    """Selects the rows of COCO's 80 classes out of 91, where 80 are wanted and rows are classes."""
    if num_classes != 80:
        return value
    if re.search(r"\.class_heads?\.", name) and len(value) == 91:
        return value[COCO_CATEGORY_IDS]
    if ".label_embedding." in name and len(value) == 92:  # the last row stands for no label
        return value[[*COCO_CATEGORY_IDS, 91]]
    return value


class Converter:
    """Renames an official state dict, and selects classes.

    Args:
        rules: regular expressions and replacements, applied one after another.
        prepare: changes the official state dict first.
        finish: changes the converted one, given the prepared one too.
    """

    def __init__(
        self,
        rules: Rules,
        prepare: Callable[[StateDict], StateDict] = lambda official: official,
        finish: Callable[[StateDict, StateDict], StateDict] = lambda converted, _: converted,
    ):
        self.rules, self.prepare, self.finish = rules, prepare, finish

    def convert_key(self, key: str) -> str | None:
        """Finds our name of an official parameter, None if it has none."""
        return rename(key, self.rules)

    def convert_state_dict(
        self, official: StateDict, *, num_queries: int = 300, num_classes: int = 80
    ) -> tuple[StateDict, StateDict]:
        """Converts an official state dict.

        Args:
            num_queries: N, to tell how many groups the rows of the query bank are.
            num_classes: 80 selects COCO's classes from the official 91 columns; 91 keeps them.

        Returns:
            the converted state dict, and the official tensors that have no name here.

        Raises:
            CheckpointError: two tensors that differ have the same name here.
        """
        converted: StateDict = {}
        unmapped: StateDict = {}
        prepared = self.prepare(official)
        for key, value in prepared.items():
            name = self.convert_key(key)
            if name is None:
                unmapped[key] = value
                continue
            value = select_classes(name, value, num_classes)
            if name in converted and not torch.equal(value, converted[name]):
                raise CheckpointError(
                    f"{key} is {name} here, and so is another tensor of the file that differs from "
                    "it: take the one that was not trained out of the file"
                )
            converted[name] = value.clone()
        converted.update(describe_bank(converted, num_queries))
        return self.finish(converted, prepared), unmapped


def describe_bank(converted: dict[str, Tensor], num_queries: int) -> dict[str, Tensor]:
    """Makes the buffers that hold the number of groups of each bank."""
    shapes = {}
    for key, bank in converted.items():
        if not key.startswith("head.queries.") or not key.endswith("bank.weight"):
            continue
        if len(bank) % num_queries:
            raise CheckpointError(
                f"the query bank has {len(bank)} rows, which are no whole number of groups of "
                f"{num_queries} queries: set MODEL.DETR.NUM_OBJECT_QUERIES to the checkpoint's"
            )
        shape = torch.tensor([len(bank) // num_queries, num_queries])
        shapes[key.removesuffix("weight") + "shape"] = shape
    return shapes
