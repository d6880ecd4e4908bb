"""The registry of DETR variants."""

from detectron2.utils.registry import Registry

VARIANT_REGISTRY = Registry("DETR variant")
VARIANT_REGISTRY.__doc__ = """
DETR variants, by the name that MODEL.DETR.VARIANT gives. A registered function is called as
``build(cfg, backbone_shape)`` and returns a :class:`groupdetr_d2.modeling.head.DETRHead`.
"""
