"""The configuration keys that this plugin adds to Detectron2's, and defaults that it changes.

The comment above a key is its description, here and in data_keys.py; tools/write_config_page.py
makes docs/config.md of them.
Keys that take one of several words are listed in choices.py.
"""

import importlib

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from .data_keys import add_data_keys

SECTIONS = (
    *("MODEL.EMA", "MODEL.DETR", "MODEL.DETR.DENOISING", "MODEL.DETR.SAM", "MODEL.SWIN"),
    *("MODEL.DETR.SPACE", "MODEL.VOVNET", "INPUT.VIEWS", "DATASETS.CUBES"),
    *(
        "MODEL.SMALL_RESNET",
        "MODEL.VIT",
        "MODEL.TRANSFORMERS",
        "DATASETS.CUSTOM",
        "DATASETS.SHAPES",
    ),
)
# importing them registers what is in them
REGISTERING = (
    *("modeling", "variants", "data.shapes", "data.nuscenes.catalog", "data.nuscenes.cubes"),
    "engine.detectron2_habits",
)


def add_groupdetr_config(cfg: CN) -> None:
    """Adds every key of the plugin, and sets Detectron2's own to what DETR models expect.

    The keys alone are a complete model: Conditional DETR on a ResNet-50. Meta-architectures,
    backbones, variants and the generated data sets are registered with Detectron2, so that
    `detectron2.modeling.build_model(cfg)` finds them.

    A configuration that has every key already is left as it is, so that a second call undoes
    nothing. Keys that other projects have added stay. Models of other projects want a configuration
    of their own: INPUT.FORMAT, MODEL.PIXEL_MEAN and others of Detectron2's keys are DETR's after
    this call.
    """
    for name in REGISTERING:
        importlib.import_module(f"groupdetr_d2.{name}")
    wanted = get_cfg()
    _add_all(wanted)
    if not set(all_keys(wanted)) <= set(all_keys(cfg)):
        _add_all(cfg)


def all_keys(cfg: CN, prefix: str = "") -> list[str]:
    """Lists the keys of a configuration, sections included, joined with dots."""
    keys = []
    for key, value in cfg.items():
        keys.append(prefix + key)
        if isinstance(value, CN):
            keys.extend(all_keys(value, f"{prefix}{key}."))
    return keys


def _add_all(cfg: CN) -> None:
    for section in SECTIONS:
        _add_section(cfg, section.split("."))
    _add_model_keys(cfg)
    _add_detr_keys(cfg)
    _add_loss_keys(cfg)
    _add_variant_keys(cfg)
    _add_backbone_keys(cfg)
    _add_vit_keys(cfg)
    _add_solver_keys(cfg)
    _add_rate_keys(cfg)
    _add_logger_keys(cfg)
    add_data_keys(cfg)


def _add_section(cfg: CN, parts: list[str]) -> None:
    """Adds a section unless another project has added it, whose keys stay in it."""
    for part in parts:
        if not isinstance(cfg.get(part), CN):
            cfg[part] = CN()
        cfg = cfg[part]


def _add_model_keys(cfg: CN) -> None:
    # The meta-architecture, which stands for the task: GroupDETR detects 2D boxes,
    # GroupMask2Former segments instances, GroupPETR detects boxes in space.
    cfg.MODEL.META_ARCHITECTURE = "GroupDETR"
    # The device of the model: cpu, cuda, cuda:1, ...
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    # The mean that is subtracted from pixels, in the order of INPUT.FORMAT: torchvision's, RGB.
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.280, 103.530]
    # The deviation that pixels are divided by, in the order of INPUT.FORMAT: torchvision's, RGB.
    cfg.MODEL.PIXEL_STD = [58.395, 57.120, 57.375]
    # Names of parameters that are not trained, as patterns such as "backbone.*".
    cfg.MODEL.FREEZE = []
    # Names of parameters that a new run loads from MODEL.WEIGHTS, as patterns such as
    # "head.encoder.*". An empty list loads all that fits.
    cfg.MODEL.LOAD_ONLY = []
    # The torch.compile backend, such as "inductor", for backbone, encoder and decoder layers in
    # training. Empty compiles nothing.
    cfg.MODEL.COMPILE = ""

    # Whether a running mean of the weights is kept, evaluated and used for inference.
    cfg.MODEL.EMA.ENABLED = False
    # The share of the running mean that is kept in an iteration.
    cfg.MODEL.EMA.DECAY = 0.9998
    # Whether that share starts small and grows to MODEL.EMA.DECAY, which forgets random initial
    # weights sooner. Fine-tuning from trained weights wants False: the whole share from the first
    # iteration, starting from those weights.
    cfg.MODEL.EMA.RAMP = True


def _add_detr_keys(cfg: CN) -> None:
    # The DETR variant, a name of the registry in groupdetr_d2/variants/.
    cfg.MODEL.DETR.VARIANT = "conditional_detr"
    # K, the groups of object queries in training. 1 is the model without Group DETR.
    cfg.MODEL.DETR.NUM_GROUPS = 1
    # Whether the queries of all groups attend to one another in training (an ablation).
    cfg.MODEL.DETR.JOINT_SELF_ATTENTION = False
    # N, the object queries of one group.
    cfg.MODEL.DETR.NUM_OBJECT_QUERIES = 300
    # The number of classes of the data; set from the json with --train-json.
    cfg.MODEL.DETR.NUM_CLASSES = 80
    # The backbone's feature maps that the neck reads, fine to coarse. The masks of mask2former have
    # the resolution of the first, which its encoder does not read.
    cfg.MODEL.DETR.IN_FEATURES = ["res5"]
    # Further feature levels of deformable models, each at half the resolution of the one before.
    cfg.MODEL.DETR.EXTRA_LEVELS = 0
    # The channels of queries and memory.
    cfg.MODEL.DETR.HIDDEN_DIM = 256
    # The heads of every attention.
    cfg.MODEL.DETR.NHEADS = 8
    # The width of the feed-forward networks.
    cfg.MODEL.DETR.DIM_FEEDFORWARD = 2048
    # The probability of dropout in attention, residual connections and feed-forward networks.
    cfg.MODEL.DETR.DROPOUT = 0.1
    # The number of encoder layers.
    cfg.MODEL.DETR.ENC_LAYERS = 6
    # The number of decoder layers.
    cfg.MODEL.DETR.DEC_LAYERS = 6
    # The temperature of the feature maps' position embedding; a checkpoint needs its own.
    cfg.MODEL.DETR.POSITION_TEMPERATURE = 10000
    # The point of a cell that its position embedding is computed at: 0 is its far edge, 0.5 its
    # centre. A checkpoint needs its own.
    cfg.MODEL.DETR.POSITION_OFFSET = 0.0
    # The norm after the projection of the backbone's features.
    cfg.MODEL.DETR.PROJECTION_NORM = ""
    # The number that the sides of an image batch are padded to a multiple of; what a backbone needs
    # is padded anyway. A checkpoint that treats padding as image needs its own.
    cfg.MODEL.DETR.SIZE_DIVISIBILITY = 0
    # Whether backward computes the activations of encoder and decoder layers anew, which takes less
    # memory and more time.
    cfg.MODEL.DETR.RECOMPUTE = False


def _add_loss_keys(cfg: CN) -> None:
    # The queries of a group that are matched with each target. More than 1 is naive one-to-many
    # assignment (an ablation), after which a model finds every object so many times.
    cfg.MODEL.DETR.MATCHES_PER_TARGET = 1
    # The weight of the classification loss.
    cfg.MODEL.DETR.CLASS_WEIGHT = 2.0
    # The weight of the L1 loss of boxes.
    cfg.MODEL.DETR.L1_WEIGHT = 5.0
    # The weight of the generalized IoU loss of boxes.
    cfg.MODEL.DETR.GIOU_WEIGHT = 2.0
    # The weight of the velocity in the L1 loss of boxes in space, where other numbers have 1.
    cfg.MODEL.DETR.VELOCITY_WEIGHT = 0.2
    # The weight of the cross-entropy loss of masks.
    cfg.MODEL.DETR.MASK_WEIGHT = 5.0
    # The weight of the dice loss of masks.
    cfg.MODEL.DETR.DICE_WEIGHT = 5.0
    # The weight of "no object" in the softmax classification loss, where a class has 1.
    cfg.MODEL.DETR.NO_OBJECT_WEIGHT = 0.1
    # The weight of the classification cost in the matching.
    cfg.MODEL.DETR.CLASS_COST = 2.0
    # The weight of the L1 cost of boxes in the matching.
    cfg.MODEL.DETR.L1_COST = 5.0
    # The weight of the generalized IoU cost of boxes in the matching.
    cfg.MODEL.DETR.GIOU_COST = 2.0
    # The weight of the cross-entropy cost of masks in the matching.
    cfg.MODEL.DETR.MASK_COST = 5.0
    # The weight of the dice cost of masks in the matching.
    cfg.MODEL.DETR.DICE_COST = 5.0
    # The points at which masks are compared, in the matching and in the losses.
    cfg.MODEL.DETR.TRAIN_NUM_POINTS = 12544
    # The candidates for the points of the mask losses, relative to their number.
    cfg.MODEL.DETR.OVERSAMPLE_RATIO = 3.0
    # The share of the points of the mask losses that are the most uncertain candidates; the others
    # are drawn anew.
    cfg.MODEL.DETR.IMPORTANCE_SAMPLE_RATIO = 0.75


def _add_variant_keys(cfg: CN) -> None:
    # The denoising queries of a group, rounded down to whole repetitions of the targets of the
    # batch's fullest image (at least one); dino adds a negative query for each. 0 is no denoising.
    cfg.MODEL.DETR.DENOISING.NUM_QUERIES = 0
    # The probability that a denoising query's label is drawn anew.
    cfg.MODEL.DETR.DENOISING.LABEL_NOISE = 0.2
    # The largest shift of a denoising query's box, relative to half its size, and the largest
    # change of its size.
    cfg.MODEL.DETR.DENOISING.BOX_NOISE = 0.4
    # The points that a query of deformable attention samples in each level and head.
    cfg.MODEL.DETR.NUM_POINTS = 4
    # Whether each decoder layer of deformable_detr moves the boxes.
    cfg.MODEL.DETR.BOX_REFINE = True
    # The origin of the queries. Empty: learned. "objectness" (deformable_detr) and "pure"
    # (dab_deformable_detr): the best positions of the encoder's output.
    cfg.MODEL.DETR.TWO_STAGE = ""

    # The space of boxes of petr: x, y, z of its lowest and highest corner in metres, about the
    # lidar. Objects beyond it, seen from above, are left out of training.
    cfg.MODEL.DETR.SPACE.BOX_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
    # The space of petr's position embedding, and of its detections, in metres.
    cfg.MODEL.DETR.SPACE.POSITION_RANGE = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]
    # The points along the ray of a cell that petr's position embedding is made of.
    cfg.MODEL.DETR.SPACE.NUM_DEPTHS = 64
    # The depth of the first of them, in metres; the last one is near the highest x of
    # MODEL.DETR.SPACE.POSITION_RANGE.
    cfg.MODEL.DETR.SPACE.FIRST_DEPTH = 1.0
    # The standard deviation among the position embeddings of petr's and petrv2's queries to begin
    # with; 0 is the official initialisation, about 0.05. With 0.5 a training from scratch begins
    # sooner.
    cfg.MODEL.DETR.SPACE.QUERY_SPREAD = 0.0

    # Whether sam_detr adds SMCA's Gaussians to the attention logits.
    cfg.MODEL.DETR.SAM.SMCA = False


def _add_backbone_keys(cfg: CN) -> None:
    # The feature maps that Detectron2's ResNets return.
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    # Whether a bottleneck has its stride in the 1 x 1 convolution: not in torchvision's ResNets.
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False

    # The channels of the first stage of build_swin_backbone.
    cfg.MODEL.SWIN.EMBED_DIM = 96
    # The blocks of each stage of build_swin_backbone.
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    # The attention heads of each stage of build_swin_backbone.
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    # The side of a window of build_swin_backbone, in cells.
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    # The probability that the last block of build_swin_backbone is left out in training; it grows
    # from 0 with depth.
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.2

    # The channels of the first convolutions of build_vovnet_backbone; VoVNetV2-99 has these.
    cfg.MODEL.VOVNET.STEM_CHANNELS = 64
    # The channels of the 3 x 3 convolutions in each stage of build_vovnet_backbone.
    cfg.MODEL.VOVNET.CONV_CHANNELS = [128, 160, 192, 224]
    # The channels of each stage's output of build_vovnet_backbone.
    cfg.MODEL.VOVNET.OUT_CHANNELS = [256, 512, 768, 1024]
    # The blocks of each stage of build_vovnet_backbone.
    cfg.MODEL.VOVNET.BLOCKS = [1, 3, 9, 3]
    # The 3 x 3 convolutions of a block of build_vovnet_backbone.
    cfg.MODEL.VOVNET.NUM_LAYERS = 5

    # The channels of the stem, res2, res3, ... of build_small_resnet_backbone.
    cfg.MODEL.SMALL_RESNET.CHANNELS = [32, 32, 64, 128, 256]


def _add_vit_keys(cfg: CN) -> None:
    # The channels of build_vit_pyramid_backbone; ViT-B has 768, ViT-L 1024, ViT-H 1280.
    cfg.MODEL.VIT.EMBED_DIM = 768
    # The blocks of build_vit_pyramid_backbone; ViT-B has 12, ViT-L 24, ViT-H 32.
    cfg.MODEL.VIT.DEPTH = 12
    # The attention heads of build_vit_pyramid_backbone; ViT-B has 12, ViT-L and ViT-H 16.
    cfg.MODEL.VIT.NUM_HEADS = 12
    # The side of a patch in pixels, 14 or 16. Weights for the other size are resampled.
    cfg.MODEL.VIT.PATCH_SIZE = 16
    # The side of a window in patches. 0: all blocks attend in the whole image.
    cfg.MODEL.VIT.WINDOW_SIZE = 14
    # The places of the blocks that attend in the whole image, from 0.
    cfg.MODEL.VIT.GLOBAL_BLOCKS = [2, 5, 8, 11]
    # The probability that the last block is left out in training; it grows from 0 with depth.
    cfg.MODEL.VIT.DROP_PATH_RATE = 0.1
    # Whether patches have a learned embedding of their place, which is resized to each image.
    cfg.MODEL.VIT.ABSOLUTE_POSITION = True
    # The side of the table of these embeddings: 14 for a pre-training on 224 pixels.
    cfg.MODEL.VIT.PRETRAIN_GRID = 14
    # Whether attention adds embeddings of vertical and horizontal distances to its logits.
    cfg.MODEL.VIT.RELATIVE_POSITION = True
    # The side in patches of the grid that the global blocks' tables of distances are made for; they
    # are resized to each image.
    cfg.MODEL.VIT.RELATIVE_GRID = 64
    # The initial factor of each channel of a block's two halves (layer scale). 0: no factors.
    cfg.MODEL.VIT.LAYER_SCALE = 0.0
    # The channels of each map of the feature pyramid.
    cfg.MODEL.VIT.PYRAMID_CHANNELS = 256

    # The model of build_transformers_backbone: a folder with a config.json, or a model of the
    # Hugging Face hub such as "facebook/dinov2-base". Its weights are a matter of MODEL.WEIGHTS.
    cfg.MODEL.TRANSFORMERS.NAME = ""
    # The configuration of that model as a text; a training reads it from NAME and writes it here,
    # so that checkpoints need no NAME.
    cfg.MODEL.TRANSFORMERS.CONFIG = ""


def _add_solver_keys(cfg: CN) -> None:
    # The optimizer.
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # The learning rate of the backbone, relative to the others'.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # Parts of names of further parameters that learn at the backbone's rate.
    cfg.SOLVER.SLOW_NAMES = []
    # The parts of a batch that go through the model one after another, which takes less memory; the
    # gradient is that of the whole batch.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # What several processes divide among them besides images. Empty: nothing, each has the whole
    # model (DDP). "fsdp": parameters, gradients, optimizer and running mean (FSDP2), for models
    # that are too large for a GPU; docs/cluster.md says when.
    cfg.SOLVER.SHARDING = ""
    # The length of the training in epochs instead of MAX_ITER. STEPS are scaled in proportion, and
    # evaluation and checkpoints come once an epoch. 0 leaves MAX_ITER.
    cfg.SOLVER.EPOCHS = 0
    # The batch size that BASE_LR is meant for; with another IMS_PER_BATCH the rate is scaled in
    # proportion. 0 never scales.
    cfg.SOLVER.REFERENCE_BATCH = 0
    # The evaluations without a better result after which the training ends. 0 never ends it.
    cfg.SOLVER.PATIENCE = 0
    # The number of numbered checkpoints that are kept, the last ones. 0 keeps all.
    cfg.SOLVER.KEEP_CHECKPOINTS = 0
    # What to do when losses, gradients or matching costs are NaN or infinite: "raise" ends the run,
    # "skip" leaves the iteration out, in every process.
    cfg.SOLVER.ON_NONFINITE = "raise"
    # The iterations that SOLVER.ON_NONFINITE "skip" may leave out in all.
    cfg.SOLVER.NONFINITE_BUDGET = 100
    # The learning rate of all parameters but the backbone's.
    cfg.SOLVER.BASE_LR = 1e-4
    # The weight decay of all parameters.
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    # The weight decay of query banks and other embeddings, as in Mask2Former; that of norms is then
    # SOLVER.WEIGHT_DECAY_NORM. None: all parameters decay alike, which is DETR's.
    cfg.SOLVER.WEIGHT_DECAY_EMBED = None
    # The iterations of linear warm-up.
    cfg.SOLVER.WARMUP_ITERS = 0
    # Whether gradients are clipped.
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    # The kind of clipping: "full_model" bounds the norm of all gradients together.
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    # The bound on the norm of the gradients.
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.1
    # The type of mixed precision (SOLVER.AMP.ENABLED); boxes, costs and losses stay float32.
    cfg.SOLVER.AMP.DTYPE = "float16"


def _add_rate_keys(cfg: CN) -> None:
    # The factor between the learning rates of neighbouring blocks of a ViT, from the last one down
    # (ViTDet). 1 is no decay.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # The factor on the learning rate for each component between a parameter and the detections
    # (the paper's decayed rates for the detector's components, by LW-DETR's rule). 1 is no decay.
    cfg.SOLVER.COMPONENT_DECAY = 1.0
    # The components, as beginnings of parameters' names, of which the first that fits counts.
    # Queries, first stage and predictor fit none and keep their rate.
    cfg.SOLVER.COMPONENTS = [
        "backbone.net",
        "backbone",
        "head.neck",
        "head.encoder",
        "head.decoder",
    ]
    # The power of SOLVER.COMPONENT_DECAY of each of SOLVER.COMPONENTS.
    cfg.SOLVER.COMPONENT_POWERS = [3, 2, 2, 2, 1]
    # The kinds of parameters without weight decay: "norm", "bias", "position" (embeddings of
    # places), "layer_scale", "embedding" (query banks and labels).
    cfg.SOLVER.NO_DECAY = []
    # The beginning of the names that SOLVER.NO_DECAY is about, such as "backbone.". Empty: all.
    cfg.SOLVER.NO_DECAY_IN = ""


def _add_logger_keys(cfg: CN) -> None:
    # The places that a training writes scalars and example predictions to, besides metrics.json:
    # "tensorboard", "wandb" (Weights & Biases), "mlflow". docs/loggers.md describes them.
    cfg.LOGGERS = ["tensorboard"]
