"""Looks at a data set before training: what is wrong with it, and what is in it."""

from argparse import ArgumentParser, Namespace

from ..errors import UserError


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--json", help="annotations in COCO's format")
    parser.add_argument("--images", help="folder of the images")
    parser.add_argument("--val-json", help="a validation set, whose images are compared with these")
    parser.add_argument("--val-images", help="folder of its images, if it is another one")
    parser.add_argument("--yolo", help="a folder in YOLO's format instead; converted into --out")
    parser.add_argument("--nuscenes", metavar="ROOT", help="a copy of nuScenes instead")
    parser.add_argument("--version", help="version of its tables, if there are several")
    parser.add_argument("--out", default="checked_data", help="folder for what is written")
    parser.add_argument("--num-queries", type=int, default=300, help="queries of a group")
    parser.add_argument("--masks", action="store_true", help="check masks, too")
    parser.add_argument(
        "--fast", action="store_true", help="headers of images alone; none of nuScenes"
    )


def run(args: Namespace) -> int:
    """Returns 1 if training on the data would stop or go wrong."""
    if args.nuscenes:
        from functools import partial

        from ..evaluation.frame_sheet import draw_frame_sheet
        from ..evaluation.nuscenes_data_report import check_nuscenes_data
        from ..tasks.boxes3d import BOXES3D

        return check_nuscenes_data(args, partial(draw_frame_sheet, BOXES3D.presentation))
    if not args.yolo and not (args.json and args.images):
        raise UserError("check-data needs --json and --images, or --yolo, or --nuscenes")
    from ..evaluation.data_report import check_data

    return check_data(args)
