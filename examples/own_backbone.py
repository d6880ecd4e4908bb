"""A backbone of your own: python examples/own_backbone.py [KEY VALUE ...]"""

import sys

from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torchvision.models import mobilenet_v3_small

from groupdetr_d2 import Trainer, model_zoo


@BACKBONE_REGISTRY.register()
class MobileNet(Backbone):
    def __init__(self, cfg, input_shape):
        super().__init__()
        self.body = mobilenet_v3_small().features[:9]
        self._out_features = ["conv9"]  # output_shape() tells these to the neck
        self._out_feature_channels = {"conv9": 48}
        self._out_feature_strides = {"conv9": 16}

    def forward(self, x):
        return {"conv9": self.body(x)}


cfg = model_zoo.get_config("quick_start/group_conditional_detr_shapes.yaml")
cfg.MODEL.BACKBONE.NAME, cfg.MODEL.DETR.IN_FEATURES = "MobileNet", ["conv9"]
cfg.merge_from_list(sys.argv[1:])
Trainer(cfg).train()
