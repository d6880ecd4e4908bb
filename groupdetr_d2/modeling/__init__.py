"""The parts that all variants share. Importing this package registers the meta-architectures."""

from . import backbone, meta_arch, transformers_backbone, vit, vovnet

__all__ = ["backbone", "meta_arch", "transformers_backbone", "vit", "vovnet"]
