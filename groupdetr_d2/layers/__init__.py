"""Layers in plain torch: no configuration, no Detectron2."""
