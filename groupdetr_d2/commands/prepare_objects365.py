"""Makes Objects365's files for training and validation of the two that are downloaded, once."""

import sys
from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--root", help="folder with train/, val/ and annotations; $DETECTRON2_DATASETS/objects365"
    )
    parser.add_argument(
        "--no-image-check", action="store_true", help="do not look for the images themselves"
    )
    parser.add_argument(
        "--leave-out-missing",
        action="store_true",
        help="write the training file without images that are not there",
    )


def run(args: Namespace) -> int:
    """Writes both files, and prints what is in them and what is missing; returns 0."""
    from ..data.objects365 import objects365_root
    from ..data.objects365_preparing import prepare
    from ..errors import UserError

    if args.no_image_check and args.leave_out_missing:
        raise UserError("--leave-out-missing has to look for images: leave --no-image-check out")
    summary = prepare(
        args.root or objects365_root(),
        checks_images=not args.no_image_check,
        leaves_out_missing=args.leave_out_missing,
        progress=sys.stderr.isatty(),
    )
    sys.stdout.write(f"{summary}\n")
    return 0
