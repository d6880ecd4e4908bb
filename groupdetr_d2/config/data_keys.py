"""The configuration keys of data sets, augmentation and evaluation; keys.py has all others."""

from detectron2.config import CfgNode as CN


def add_data_keys(cfg: CN) -> None:
    """Adds the keys of DATASETS, DATALOADER, INPUT and TEST."""
    _add_data_keys(cfg)
    _add_test_keys(cfg)
    _add_view_keys(cfg)
    _add_set_keys(cfg)


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
    # What test-time augmentation merges: "boxes", the detections of all sizes and flips, by
    # weighted boxes fusion; "features", the queries of all sizes after every decoder layer, and
    # what each query predicts on the image and on its mirror image.
    cfg.TEST.AUG.FUSION = "boxes"
    # The lengths of the shorter side in test-time augmentation, in pixels, in place of
    # TEST.AUG.SCALES. An empty list leaves it to those.
    cfg.TEST.AUG.MIN_SIZES = []
    # The bound of the longer side in test-time augmentation. 0 is INPUT.MAX_SIZE_TEST, in
    # proportion to the shorter side, and no bound where INPUT.MIN_SIZE_TEST is 0.
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
    # The smallest distance between the end of an object and the vehicle, in metres.
    cfg.DATASETS.CUBES.NEAR = 4.0

    # The training images of the generated set (groupdetr_d2/data/shapes.py).
    cfg.DATASETS.SHAPES.NUM_TRAIN = 4000
    # The validation images of the generated set.
    cfg.DATASETS.SHAPES.NUM_VAL = 400
    # The side of a generated image, in pixels.
    cfg.DATASETS.SHAPES.IMAGE_SIZE = 128
    # The most objects of a generated image.
    cfg.DATASETS.SHAPES.MAX_OBJECTS = 8
    # The classes of generated images, some of circle, ring, square, diamond, triangle and cross;
    # MODEL.DETR.NUM_CLASSES is their number. An empty list is all six.
    cfg.DATASETS.SHAPES.CLASSES = []
