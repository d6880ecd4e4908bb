"""The configuration keys that this plugin adds to Detectron2's."""

from detectron2.config import CfgNode as CN


def add_groupdetr_config(cfg: CN) -> None:
    """Adds every key of the plugin, and sets Detectron2's own to what DETR models expect."""
    _add_model_keys(cfg)
    _add_detr_keys(cfg)
    _add_loss_keys(cfg)
    _add_variant_keys(cfg)
    _add_solver_keys(cfg)
    _add_data_keys(cfg)


def _add_model_keys(cfg: CN) -> None:
    cfg.MODEL.META_ARCHITECTURE = "GroupDETR"
    # "auto" takes CUDA if there is any, else the CPU
    cfg.MODEL.DEVICE = "auto"
    # torchvision's ImageNet models: RGB, in this order
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.280, 103.530]
    cfg.MODEL.PIXEL_STD = [58.395, 57.120, 57.375]

    # parameters that stay as they are: patterns such as "backbone.*" or "head.encoder.*"
    cfg.MODEL.FREEZE = []
    # what a new run takes from MODEL.WEIGHTS: patterns of names as above; all that fits, if empty
    cfg.MODEL.LOAD_ONLY = []

    # a backend of torch.compile, such as "inductor", for backbone, encoder and decoder layers in
    # training; "" leaves them as they are
    cfg.MODEL.COMPILE = ""

    cfg.MODEL.EMA = CN()
    # a running mean of the weights, which is evaluated and used for inference
    cfg.MODEL.EMA.ENABLED = False
    # the share of the mean that an iteration keeps
    cfg.MODEL.EMA.DECAY = 0.9998


def _add_detr_keys(cfg: CN) -> None:
    cfg.MODEL.DETR = CN()
    # a name of the registry of variants, see groupdetr_d2/variants/
    cfg.MODEL.DETR.VARIANT = "conditional_detr"
    # K, the groups of object queries in training; 1 is the model without Group DETR
    cfg.MODEL.DETR.NUM_GROUPS = 1
    # ablation: self-attention among the queries of all groups in training
    cfg.MODEL.DETR.JOINT_SELF_ATTENTION = False
    # N, the object queries of one group
    cfg.MODEL.DETR.NUM_OBJECT_QUERIES = 300
    # must be that of the data; set from the json when training on one's own (--train-json)
    cfg.MODEL.DETR.NUM_CLASSES = 80
    # outputs of the backbone to use, fine to coarse
    cfg.MODEL.DETR.IN_FEATURES = ["res5"]
    # deformable models: feature levels beyond, each at half the resolution of the one before
    cfg.MODEL.DETR.EXTRA_LEVELS = 0
    cfg.MODEL.DETR.HIDDEN_DIM = 256
    cfg.MODEL.DETR.NHEADS = 8
    cfg.MODEL.DETR.DIM_FEEDFORWARD = 2048
    cfg.MODEL.DETR.DROPOUT = 0.1
    cfg.MODEL.DETR.ENC_LAYERS = 6
    cfg.MODEL.DETR.DEC_LAYERS = 6
    # of the feature maps' position embedding; a checkpoint works with its own alone
    cfg.MODEL.DETR.POSITION_TEMPERATURE = 10000
    # of the same: 0 puts a cell's position at its far edge, 0.5 at its centre
    cfg.MODEL.DETR.POSITION_OFFSET = 0.0
    # after the projection of backbone features: "" or "GN"
    cfg.MODEL.DETR.PROJECTION_NORM = ""
    # encoder and decoder layers compute their activations anew in backward: less memory, more time
    cfg.MODEL.DETR.RECOMPUTE = False


def _add_loss_keys(cfg: CN) -> None:
    # ablation: queries that are matched with each target; more than 1 is naive one-to-many
    # assignment, which teaches the model to find every object so many times
    cfg.MODEL.DETR.MATCHES_PER_TARGET = 1
    # weights in the loss
    cfg.MODEL.DETR.CLASS_WEIGHT = 2.0
    cfg.MODEL.DETR.L1_WEIGHT = 5.0
    cfg.MODEL.DETR.GIOU_WEIGHT = 2.0
    # weights in the matching
    cfg.MODEL.DETR.CLASS_COST = 2.0
    cfg.MODEL.DETR.L1_COST = 5.0
    cfg.MODEL.DETR.GIOU_COST = 2.0


def _add_variant_keys(cfg: CN) -> None:
    cfg.MODEL.DETR.DENOISING = CN()
    # denoising queries of a group, about: whole repetitions of the fullest image's targets; 0: none
    cfg.MODEL.DETR.DENOISING.NUM_QUERIES = 0
    # probability that a label is drawn anew
    cfg.MODEL.DETR.DENOISING.LABEL_NOISE = 0.2
    # largest shift of a box, relative to half its size, and largest change of its size
    cfg.MODEL.DETR.DENOISING.BOX_NOISE = 0.4

    # deformable attention: points that a query looks at, in each level and head
    cfg.MODEL.DETR.NUM_POINTS = 4
    # deformable_detr: whether each layer moves the boxes
    cfg.MODEL.DETR.BOX_REFINE = True
    # two-stage models take their queries from the encoder's output; "": learned queries
    cfg.MODEL.DETR.TWO_STAGE = ""

    cfg.MODEL.DETR.SAM = CN()
    # SAM-DETR: add SMCA's Gaussians to the attention logits
    cfg.MODEL.DETR.SAM.SMCA = False

    cfg.MODEL.SWIN = CN()
    # build_swin_backbone: Swin-T's sizes
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    # probability that a block is left out, growing from 0 to this with depth
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.2
    cfg.MODEL.SWIN.OUT_FEATURES = ["p1", "p2", "p3"]

    cfg.MODEL.SMALL_RESNET = CN()
    # build_small_resnet_backbone: channels of the stem, res2, res3, ...
    cfg.MODEL.SMALL_RESNET.CHANNELS = [32, 32, 64, 128, 256]


def _add_solver_keys(cfg: CN) -> None:
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # learning rate of the backbone, relative to the rest
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # parameters with one of these in their name learn at the backbone's rate too
    cfg.SOLVER.SLOW_NAMES = []
    # parts of a batch that go through the model one after another: less memory, the same gradient
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # length of the training in epochs instead of MAX_ITER; STEPS move along in proportion, and
    # evaluation and checkpoints come once an epoch. 0: MAX_ITER holds
    cfg.SOLVER.EPOCHS = 0
    # batch size that BASE_LR is meant for: with another one it is changed in proportion. 0: never
    cfg.SOLVER.REFERENCE_BATCH = 0
    # evaluations without a better AP after which the training ends; 0: never
    cfg.SOLVER.PATIENCE = 0
    # numbered checkpoints that are kept, the last ones; 0: all
    cfg.SOLVER.KEEP_CHECKPOINTS = 0
    # losses, gradients or matching costs that are NaN or infinite: "raise" ends the run, "skip"
    # leaves the iteration out, in every process, as often as NONFINITE_BUDGET says
    cfg.SOLVER.ON_NONFINITE = "raise"
    cfg.SOLVER.NONFINITE_BUDGET = 100
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    cfg.SOLVER.WARMUP_ITERS = 0
    # "full_model" clips the norm of all gradients together
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.1
    # "float16" or "bfloat16"; boxes, costs and losses stay float32
    cfg.SOLVER.AMP.DTYPE = "float16"


def _add_data_keys(cfg: CN) -> None:
    cfg.INPUT.FORMAT = "RGB"
    # DETR's augmentation: with probability 0.5 (if CROP.ENABLED) resize to one of CROP.MIN_SIZE
    # and crop, then in any case resize to one of MIN_SIZE_TRAIN
    cfg.INPUT.CROP.MIN_SIZE = [400, 500, 600]
    # the official recipes train on the images without objects too
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    # a training image that cannot be read: "raise" ends the run, "skip" takes the next one, until
    # more than MAX_SKIPPED different ones have failed in a process
    cfg.DATALOADER.ON_ERROR = "raise"
    cfg.DATALOADER.MAX_SKIPPED = 100

    # a data set of one's own in COCO's format; also --train-json and so on of train_net.py
    cfg.DATASETS.CUSTOM = CN()
    cfg.DATASETS.CUSTOM.TRAIN_JSON = ""
    cfg.DATASETS.CUSTOM.TRAIN_IMAGES = ""
    cfg.DATASETS.CUSTOM.VAL_JSON = ""
    cfg.DATASETS.CUSTOM.VAL_IMAGES = ""
    # boxes without area or wholly outside their image: "error" names them, "drop" leaves them out
    cfg.DATASETS.CUSTOM.BAD_BOXES = "error"
    # the generated set of groupdetr_d2/data/shapes.py
    cfg.DATASETS.SHAPES = CN()
    cfg.DATASETS.SHAPES.NUM_TRAIN = 4000
    cfg.DATASETS.SHAPES.NUM_VAL = 400
    cfg.DATASETS.SHAPES.IMAGE_SIZE = 128
    cfg.DATASETS.SHAPES.MAX_OBJECTS = 8
