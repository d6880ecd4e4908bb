"""The configuration keys that this plugin adds to Detectron2's, and defaults that it changes.

The comment above a key is its description; tools/write_config_page.py makes docs/config.md of them.
Keys that take one of several words are listed in choices.py.
"""

import importlib

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

SECTIONS = (
    *("MODEL.EMA", "MODEL.DETR", "MODEL.DETR.DENOISING", "MODEL.DETR.SAM", "MODEL.SWIN"),
    *("MODEL.DETR.SPACE", "MODEL.VOVNET", "INPUT.VIEWS", "DATASETS.CUBES"),
    *("MODEL.SMALL_RESNET", "DATASETS.CUSTOM", "DATASETS.SHAPES"),
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
    _add_solver_keys(cfg)
    _add_logger_keys(cfg)
    _add_data_keys(cfg)
    _add_test_keys(cfg)
    _add_view_keys(cfg)
    _add_set_keys(cfg)


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


def _add_logger_keys(cfg: CN) -> None:
    # The places that a training writes scalars and example predictions to, besides metrics.json:
    # "tensorboard", "wandb" (Weights & Biases), "mlflow". docs/loggers.md describes them.
    cfg.LOGGERS = ["tensorboard"]


def _add_data_keys(cfg: CN) -> None:
    # The side of the square that large-scale jitter makes of a training image: flipped, resized at
    # random, then cropped or padded. 0 is DETR's augmentation.
    cfg.INPUT.IMAGE_SIZE = 0
    # The smallest size of large-scale jitter, relative to the image that fits into the square.
    cfg.INPUT.MIN_SCALE = 0.1
    # The largest size of large-scale jitter, relative to the image that fits into the square.
    cfg.INPUT.MAX_SCALE = 2.0
    # The probability that squares of a grid are cut out of the images of a training batch.
    cfg.INPUT.GRID_MASK = 0.0
    # The order of an image's channels.
    cfg.INPUT.FORMAT = "RGB"
    # The shorter sides, one of which is chosen at random, of images that are then cropped: with
    # probability 0.5 if INPUT.CROP.ENABLED, ahead of the resizing to INPUT.MIN_SIZE_TRAIN (DETR's
    # augmentation).
    cfg.INPUT.CROP.MIN_SIZE = [400, 500, 600]
    # Whether images without objects are left out of training; the official recipes keep them.
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    # What to do when a training image cannot be read: "raise" ends the run, "skip" takes the next
    # image.
    cfg.DATALOADER.ON_ERROR = "raise"
    # The different images that DATALOADER.ON_ERROR "skip" may leave out in a process.
    cfg.DATALOADER.MAX_SKIPPED = 100
    # The most images of a batch in evaluation, in each process. They are of one size, so that none
    # is padded to the size of another.
    cfg.TEST.IMS_PER_BATCH = 1
    # The sizes in which test-time augmentation (TEST.AUG.ENABLED) sees an image, relative to
    # INPUT.MIN_SIZE_TEST, or to the image where that is 0.
    cfg.TEST.AUG.SCALES = [0.5, 0.625, 0.75, 0.875, 1.0, 1.125, 1.25, 1.375, 1.5]
    # The lengths of the shorter side in test-time augmentation, in pixels, in place of
    # TEST.AUG.SCALES. An empty list leaves it to those.
    cfg.TEST.AUG.MIN_SIZES = []
    # The bound of the longer side in test-time augmentation. 0 is INPUT.MAX_SIZE_TEST, in
    # proportion to the shorter side.
    cfg.TEST.AUG.MAX_SIZE = 0


def _add_test_keys(cfg: CN) -> None:
    # Whether an evaluation computes losses, too: those of the primary group, without dropout and
    # denoising. They are validation/total_loss and so on in metrics.json.
    cfg.TEST.LOSS = True


def _add_view_keys(cfg: CN) -> None:
    # The height and width of the images of a model of several cameras.
    cfg.INPUT.VIEWS.SIZE = [320, 800]
    # The smallest and the largest factor by which those images are resized in training, one for all
    # cameras, ahead of their crop to INPUT.VIEWS.SIZE.
    cfg.INPUT.VIEWS.SCALES = [0.47, 0.625]
    # The largest angle by which space is turned in training, in radians.
    cfg.INPUT.VIEWS.ROTATION = 0.3925
    # The smallest and the largest factor by which lengths in space are scaled in training.
    cfg.INPUT.VIEWS.SPACE_SCALES = [0.95, 1.05]
    # The range of earlier camera frames, one of which a model sees besides the keyframe; 0 is the
    # one just before it. An empty list is the keyframe alone.
    cfg.INPUT.VIEWS.EARLIER = []
    # The seconds between two images of a camera, which tell the time to an earlier frame where a
    # scene begins and there is none.
    cfg.INPUT.VIEWS.FRAME_SECONDS = 0.083


def _add_set_keys(cfg: CN) -> None:
    # The annotations of your own training set in COCO's format (--train-json).
    cfg.DATASETS.CUSTOM.TRAIN_JSON = ""
    # The image folder of your own training set (--train-images).
    cfg.DATASETS.CUSTOM.TRAIN_IMAGES = ""
    # The annotations of your own validation set in COCO's format (--val-json).
    cfg.DATASETS.CUSTOM.VAL_JSON = ""
    # The image folder of your own validation set (--val-images).
    cfg.DATASETS.CUSTOM.VAL_IMAGES = ""
    # What to do with boxes that have no area or lie outside their image: "error" names them, "drop"
    # leaves them out.
    cfg.DATASETS.CUSTOM.BAD_BOXES = "error"

    # The training scenes of the generated copy of nuScenes (groupdetr_d2/data/nuscenes/cubes.py).
    cfg.DATASETS.CUBES.TRAIN_SCENES = 80
    # The validation scenes of the generated copy of nuScenes.
    cfg.DATASETS.CUBES.VAL_SCENES = 20
    # The keyframes of a generated scene, half a second apart.
    cfg.DATASETS.CUBES.KEYFRAMES = 6
    # The camera frames between two keyframes of a generated scene; petrv2 wants nuScenes' 5.
    cfg.DATASETS.CUBES.SWEEPS = 0
    # The width of a generated photograph, in pixels.
    cfg.DATASETS.CUBES.WIDTH = 176
    # The height of a generated photograph, in pixels.
    cfg.DATASETS.CUBES.HEIGHT = 96
    # The objects of a generated scene.
    cfg.DATASETS.CUBES.OBJECTS = 16
    # The largest distance of an object of a generated scene from the vehicle, in metres.
    cfg.DATASETS.CUBES.FAR = 25.0

    # The training images of the generated set (groupdetr_d2/data/shapes.py).
    cfg.DATASETS.SHAPES.NUM_TRAIN = 4000
    # The validation images of the generated set.
    cfg.DATASETS.SHAPES.NUM_VAL = 400
    # The side of a generated image, in pixels.
    cfg.DATASETS.SHAPES.IMAGE_SIZE = 128
    # The most objects of a generated image.
    cfg.DATASETS.SHAPES.MAX_OBJECTS = 8
