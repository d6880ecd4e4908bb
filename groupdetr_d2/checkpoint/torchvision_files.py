"""Backbones by torchvision's names, ``torchvision://resnet50``, for Detectron2's path manager."""

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from torchvision.models import get_model_weights

from ..errors import UserError

FIRST = "IMAGENET1K_V1"  # the weights that DETR's official codes start from; later ones are V2


class TorchvisionHandler(PathHandler):
    """Finds the files of torchvision's models, which are downloaded once.

    A path is a model's name, ``torchvision://resnet50``, with other weights than the first ones if
    they are named, ``torchvision://resnet50/IMAGENET1K_V2``.
    """

    PREFIX = "torchvision://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        url = address_of(path.removeprefix(self.PREFIX))
        return PathManager.get_local_path(url, force=force, **kwargs)


def address_of(name: str) -> str:
    """Finds the https address of a model's weights.

    Args:
        name: of a model, or of a model and its weights, ``resnet50/IMAGENET1K_V2``.

    Raises:
        UserError: torchvision has no such model or weights.
    """
    model, _, version = name.partition("/")
    try:
        weights = get_model_weights(model)
    except ValueError as error:
        raise UserError(
            f"torchvision://{name}: torchvision has no model {model}; those that can be backbones "
            "are resnet18, resnet34, resnet50, resnet101 and resnet152"
        ) from error
    version = version or FIRST
    if version not in weights.__members__:
        known = ", ".join(weights.__members__)
        raise UserError(f"torchvision://{name}: {model} has the weights {known}")
    return weights[version].url


PathManager.register_handler(TorchvisionHandler(), allow_override=True)
