"""Detects objects on images, videos or keyframes of nuScenes; writes pictures, JSON and CSV."""

from argparse import REMAINDER, ArgumentParser, Namespace

from .arguments import ListOrOverrides


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "images",
        action=ListOrOverrides,
        help="images, folders, patterns such as 'a/*.jpg', videos; for a model of several cameras "
        "sample tokens, scenes, registered sets or copies of nuScenes; then overrides, KEY VALUE",
    )
    parser.add_argument("--weights", required=True, help="a checkpoint of train_net.py")
    parser.add_argument("--out", default="predictions", help="folder for what is written")
    parser.add_argument(
        "--threshold", type=float, help="lowest score; if not given, the checkpoint's best (F1)"
    )
    parser.add_argument("--verbose", action="store_true", help="print every object")
    parser.add_argument("--no-pictures", action="store_true", help="write JSON and CSV alone")
    parser.add_argument(
        "--coco-json",
        metavar="JSON",
        help="annotations with the images' ids: results in COCO's format are written too",
    )
    parser.add_argument(
        "--polygons", action="store_true", help="masks as polygons in detections.json, not RLE"
    )
    parser.add_argument(
        "--nuscenes",
        metavar="ROOT",
        help="the copy of nuScenes that has the tokens and scenes, if not the model's test set",
    )
    parser.add_argument("--version", help="version of its tables, if there are several")
    parser.add_argument(
        "--no-truth", action="store_true", help="draw detections in keyframes without true boxes"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="the most images of one size that go through the model together; default: 8",
    )
    parser.add_argument("--device", help="cpu, cuda, ...; a GPU if there is one")
    parser.add_argument(
        "--opts", nargs=REMAINDER, default=[], help="overrides: KEY VALUE ... (comes last)"
    )


def run(args: Namespace) -> int:
    """Returns 1 if some images could not be read; the others are done all the same."""
    from ..inference.prediction import predict

    return predict(args)
