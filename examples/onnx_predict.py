"""Detects with a file of `groupdetr-d2 export`, with onnxruntime and NumPy alone.

    python examples/onnx_predict.py model.onnx image.jpg [threshold]

prints every detection as a line of JSON. All that it knows about the model stands in the file's
metadata, which docs/export.md explains. Pillow reads the picture and does nothing else: the
resizing below gives its bytes.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

BITS = 22  # behind the point of a weight


def main(model_file, image_file, threshold=None):
    session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
    picture = ImageOps.exif_transpose(Image.open(image_file)).convert("RGB")
    for found in detect(session, np.asarray(picture), threshold):
        found.pop("mask", None)
        print(json.dumps(found, ensure_ascii=False))


def detect(session, image, threshold=None):
    """Detects on an image (H, W, 3) uint8, RGB; boxes are x1 y1 x2 y2 in its pixels."""
    texts = session.get_modelmeta().custom_metadata_map
    contract = {k: json.loads(texts[k]) for k in ("input", "resize", "class_names", "outputs")}
    lowest = json.loads(texts["score_threshold"]) if threshold is None else float(threshold)
    height, width = image.shape[:2]
    size = input_size(height, width, contract["resize"])
    resized = resize(image, size)
    if contract["input"]["channels"] == "BGR":
        resized = resized[:, :, ::-1]
    images = resized.transpose(2, 0, 1)[None].astype(np.float32)
    names = [output["name"] for output in contract["outputs"]]
    values = session.run(names, {contract["input"]["name"]: images})
    outputs = {name: value[0] for name, value in zip(names, values, strict=True)}
    scales = np.array([width / size[1], height / size[0]] * 2)
    boxes = np.clip(outputs["boxes"] * scales, 0, [width, height] * 2)
    found = []
    for i, (box, score) in enumerate(zip(boxes, outputs["scores"], strict=True)):
        if score < lowest or box[2] <= box[0] or box[3] <= box[1]:
            continue
        name = contract["class_names"][outputs["labels"][i]]
        found.append({"class": name, "score": float(score), "box": box.round(2).tolist()})
        if "masks" in outputs:
            mask = resize(outputs["masks"][i][:, :, None] * np.uint8(255), (height, width))
            found[-1]["mask"] = mask[:, :, 0] > 127
            found[-1]["area"] = int(found[-1]["mask"].sum())
    return found


def input_size(height, width, rule):
    """The size (height, width) of the model's input for an image of that size."""
    if rule["rule"] == "exact":
        return rule["height"], rule["width"]
    if not rule["min_size"]:
        return height, width
    scale = rule["min_size"] / min(height, width)
    sides = scale * height, scale * width
    if max(sides) > rule["max_size"]:
        scale = rule["max_size"] / max(sides)
        sides = scale * sides[0], scale * sides[1]
    return tuple(max(1, int(side + 0.5)) for side in sides)


def resize(image, size):
    """Resizes an image (H, W, C) uint8 to (height, width): first along rows, then columns.

    In images of more than 100 times their width columns come first, if they become shorter.
    """
    if image.shape[0] > 100 * image.shape[1] and size[0] < image.shape[0]:
        image = resampled(image, size[0])
    wide = resampled(image.transpose(1, 0, 2), size[1]).transpose(1, 0, 2)
    return resampled(wide, size[0])


def resampled(lines, count):
    """Makes `count` lines of lines (n, m, C), each a mean whose weights fall off linearly.

    They reach as far as a line of the result is wide, at least one line of the source: an image
    that is made smaller does not alias. Weights are whole multiples of 2**-22, and each of the two
    passes rounds to bytes.
    """
    number = len(lines)
    if number == count:
        return lines
    scale = number / count
    reach = max(scale, 1.0)
    centres = (np.arange(count) + 0.5) * scale
    first = np.maximum((centres - reach + 0.5).astype(int), 0)
    last = np.minimum((centres + reach + 0.5).astype(int), number)
    places = first[:, None] + np.arange((last - first).max())
    weights = np.maximum(0, 1 - np.abs((places - centres[:, None] + 0.5) * (1 / reach)))
    weights *= places < last[:, None]
    weights /= weights.sum(1, keepdims=True)
    whole = (weights * (1 << BITS) + 0.5).astype(np.int32)
    total = np.full((count, *lines.shape[1:]), 1 << (BITS - 1), np.int32)
    for place, weight in zip(np.minimum(places, number - 1).T, whole.T, strict=True):
        total += lines[place] * weight[:, None, None]
    return np.clip(total >> BITS, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main(*sys.argv[1:])
