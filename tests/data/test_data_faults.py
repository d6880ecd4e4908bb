"""Images that cannot be read or are of an unusual kind, and workers that die."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from PIL import Image

from groupdetr_d2.data import workers
from groupdetr_d2.data.augmentation import build_augmentation
from groupdetr_d2.data.image_file import ImageReadError, read_bgr
from groupdetr_d2.data.loader import TrainingSet, build_train_loader, seed_everything
from groupdetr_d2.engine.reporting import report_errors
from groupdetr_d2.engine.setup import settle_config
from groupdetr_d2.errors import UserError
from groupdetr_d2.tasks.boxes import BOXES
from tests.data.test_data import custom_config, write_set


def picture():
    """A grey ramp, (20, 30), and the same as an RGB picture with one red pixel."""
    ramp = (np.indices((20, 30)).sum(0) * 5).astype(np.uint8)
    image = Image.fromarray(ramp).convert("RGB")
    image.putpixel((0, 0), (200, 10, 30))
    return ramp, image


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I", "F"])
def test_pictures_of_any_mode_are_read_as_colour(tmp_path, mode):
    ramp, image = picture()
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I", "F") else "a.png")
    (image.quantize(256) if mode == "P" else image.convert(mode)).save(path)
    found = read_bgr(path)
    assert found.shape == (20, 30, 3) and found.dtype == np.uint8
    if mode == "1":
        assert set(np.unique(found)) == {0, 255}
    else:
        difference = found[10:].astype(int) - ramp[10:, :, None]
        assert np.abs(difference).max() <= 1
    if mode in ("RGBA", "CMYK"):
        assert found[0, 0].tolist() == [30, 10, 200]


def test_sixteen_bits_become_eight(tmp_path):
    values = (np.indices((20, 30)).sum(0) * 1300).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    expected = np.round(values * (255 / values.max()))
    assert (read_bgr(tmp_path / "deep.png")[..., 0] == expected).all()
    Image.fromarray(values // 1300).save(tmp_path / "dark.png")  # eight bits in a wide file
    assert (read_bgr(tmp_path / "dark.png")[..., 0] == values // 1300).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_tag_says(tmp_path, orientation):
    ramp, image = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    found = read_bgr(tmp_path / "turned.png")
    red = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1)}
    assert found.shape[:2] == ((20, 30) if orientation < 5 else (30, 20))
    assert found[red.get(orientation, (-1, 0))].tolist() == [30, 10, 200]


def test_items_are_those_of_detectron2s_mapper(tmp_path):
    cfg = custom_config(tmp_path, "SEED", 1)
    settle_config(cfg)
    d = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)[0]
    augmentations = build_augmentation(cfg, is_train=True)
    reference = DatasetMapper(is_train=True, augmentations=augmentations, image_format="RGB")
    seed_everything(1, 5)
    expected = reference(d)
    found = TrainingSet([d], BOXES.build_mapper(cfg, is_train=True), seed=1)[5]
    assert torch.equal(found["image"], expected["image"])
    for name, value in expected["instances"].get_fields().items():
        other = found["instances"].get(name)
        assert torch.equal(getattr(other, "tensor", other), getattr(value, "tensor", value)), name


def broken_set(tmp_path, *opts, broken=1, num_workers=0):
    opts = [*opts, "SEED", 1, "DATALOADER.NUM_WORKERS", num_workers]
    cfg = custom_config(tmp_path, *opts, train=write_set(tmp_path, "train", num_images=4))
    settle_config(cfg)
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    for d in dicts[:broken]:
        open(d["file_name"], "wb").write(b"no picture")
    return cfg, dicts


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_cannot_be_read_is_left_out_if_one_says_so(
    tmp_path, num_workers, package_log
):
    """The next one takes its place; named once, whoever reads it."""
    cfg, dicts = broken_set(
        tmp_path, "DATALOADER.ON_ERROR", "skip", broken=1, num_workers=num_workers
    )
    loader, seen = (
        iter(build_train_loader(cfg, TrainingSet(dicts), BOXES.build_mapper(cfg, is_train=True))),
        workers.SkippedImages(1),
    )
    names = set()
    for _ in range(6):
        batch = next(loader)
        seen.add(batch)
        names |= {item["file_name"] for item in batch}
    assert names == {d["file_name"] for d in dicts[1:]}
    assert package_log.text.count("left out, number") == 1
    assert f"left out, number 1: image {dicts[0]['file_name']}" in package_log.text


def test_too_many_images_that_cannot_be_read_end_the_run(tmp_path):
    cfg, dicts = broken_set(tmp_path, "DATALOADER.ON_ERROR", "skip", broken=2)
    loader, seen = (
        iter(build_train_loader(cfg, TrainingSet(dicts), BOXES.build_mapper(cfg, is_train=True))),
        workers.SkippedImages(1),
    )
    with pytest.raises(ImageReadError, match="2 training images.*MAX_SKIPPED .1.: .*check-data"):
        for _ in range(6):
            seen.add(next(loader))
    cfg, dicts = broken_set(tmp_path, "DATALOADER.ON_ERROR", "skip", broken=4)
    with pytest.raises(ImageReadError, match="no image of the data set can be used"):
        next(
            iter(
                build_train_loader(cfg, TrainingSet(dicts), BOXES.build_mapper(cfg, is_train=True))
            )
        )


def test_an_unknown_policy_is_named(tmp_path):
    with pytest.raises(UserError, match="'ignore'; it can be raise or skip"):
        broken_set(tmp_path, "DATALOADER.ON_ERROR", "ignore")


class Dying(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_named_with_a_remedy(capsys):
    loader = torch.utils.data.DataLoader(Dying(), num_workers=1)
    with pytest.raises(SystemExit) as end, report_errors():
        next(iter(loader))
    text = str(end.value)
    assert "data-loading worker" in text and "Killed" in text and "--shm-size" in text
    with pytest.raises(RuntimeError, match="another"), report_errors():
        raise RuntimeError("another")


def test_a_full_shared_memory_is_explained():
    text = workers.explain_worker_error(
        RuntimeError("unable to write to file </torch_7_1>: No space left on device (28)")
    )
    assert "No space left" in text and "--shm-size" in text
    assert workers.explain_worker_error(ValueError("x")) is None


@pytest.mark.parametrize("free, warns", [(64 * 2**20, True), (2**34, False)])
def test_small_shared_memory_is_said_before_it_is_full(
    tmp_path, monkeypatch, package_log, free, warns
):
    monkeypatch.setattr(workers, "free_shared_memory", lambda: free)
    cfg = custom_config(tmp_path, "DATALOADER.NUM_WORKERS", 4)
    workers.check_shared_memory(cfg, 8)
    assert ("64 MB of it are free: give the container more" in package_log.text) == warns
    cfg.DATALOADER.NUM_WORKERS = 0
    package_log.clear()
    workers.check_shared_memory(cfg, 8)
    assert not package_log.text
