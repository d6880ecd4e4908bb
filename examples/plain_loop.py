"""A loop of your own with Detectron2's loader: python examples/plain_loop.py [KEY VALUE ...]"""

import sys

from detectron2.data import build_detection_train_loader
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler

from groupdetr_d2 import build_optimizer, model_zoo

cfg = model_zoo.get_config("quick_start/group_conditional_detr_shapes.yaml")
cfg.merge_from_list(sys.argv[1:])
model = build_model(cfg)  # in training mode
optimizer = build_optimizer(cfg, model)  # AdamW; its step clips the gradients first
scheduler = build_lr_scheduler(cfg, optimizer)
for i, batch in enumerate(build_detection_train_loader(cfg), 1):
    losses = model(batch)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    scheduler.step()
    print(i, {name: round(loss.item(), 3) for name, loss in losses.items()})
    if i == cfg.SOLVER.MAX_ITER:
        break
