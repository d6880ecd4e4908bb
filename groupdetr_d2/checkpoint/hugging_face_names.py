"""Hugging Face `transformers` checkpoints whose names are turned into the official ones first."""

import re

import torch

from .hugging_face import BACKBONE, backbone_key
from .official import Converter, Rules, StateDict

IN_PROJECTION = re.compile(r"^(.*\.self_attn)\.q_proj\.(weight|bias)$")


class RenamingConverter:
    """Renames a state dict officially, and leaves the rest to the official converter.

    The backbone is that of timm or of `transformers` itself, and is renamed at once.

    Args:
        rules: regular expressions and replacements, applied one after another.
        converter: of the official names.
    """

    def __init__(self, rules: Rules, converter: Converter):
        self.rules, self.converter = rules, converter

    def official_key(self, key: str) -> str:
        """Finds the official name of a parameter; unknown ones keep theirs in part."""
        for pattern, replacement in self.rules:
            key = re.sub(pattern, replacement, key)
        return key

    def official_state_dict(self, state_dict: StateDict) -> StateDict:
        """Renames the transformer's tensors officially; the backbone's are left out."""
        renamed = {
            self.official_key(key): value
            for key, value in state_dict.items()
            if not BACKBONE.match(key)
        }
        for key in [key for key in renamed if IN_PROJECTION.match(key)]:
            prefix, kind = IN_PROJECTION.match(key).groups()
            parts = [renamed.pop(f"{prefix}.{x}_proj.{kind}") for x in "qkv"]
            renamed[f"{prefix}.in_proj_{kind}"] = torch.cat(parts)
        return renamed

    def convert_state_dict(
        self, official: StateDict, *, num_queries: int = 300, num_classes: int = 80
    ) -> tuple[StateDict, StateDict]:
        """Converts a state dict; see :meth:`.official.Converter.convert_state_dict`."""
        converted, unmapped = self.converter.convert_state_dict(
            self.official_state_dict(official), num_queries=num_queries, num_classes=num_classes
        )
        names = {self.official_key(key): key for key in official}
        unmapped = {names.get(key, key): value for key, value in unmapped.items()}
        for key in filter(BACKBONE.match, official):
            name = backbone_key(key)
            if name is None:
                unmapped[key] = official[key]
            else:
                converted[name] = official[key].clone()
        return converted, unmapped
