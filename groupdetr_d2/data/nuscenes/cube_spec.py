"""The numbers of a generated copy of nuScenes, and the time of its images."""

import hashlib
import json
from dataclasses import asdict, dataclass

VERSION = 1  # counts changes of what is written, so that an old cache is not taken for a new one
KEYFRAME_INTERVAL = 500_000  # microseconds, as in nuScenes


@dataclass(frozen=True)
class CubesSpec:
    """A generated copy: `train_scenes` and `val_scenes` drives among coloured cuboids.

    Attributes:
        train_scenes, val_scenes: numbers of scenes of the two sets.
        keyframes: keyframes of a scene, half a second apart.
        sweeps: camera frames that are rendered between two keyframes. Models of a single frame
            need none; those that look back take nuScenes' 5 to lie as far apart as there.
        width, height: pixels of an image. Focal lengths are those of nuScenes for this width.
        objects: objects of a scene; classes take turns, so 10 have one of each.
        near, far: metres between the vehicle and an object at a random moment of the scene, near
            to the object's end and far to its centre.
        moving: fraction of objects that move, among those that can.
        speed: factor on the typical speeds of moving objects.
        ego_speed: greatest speed of the vehicle in metres per second.
        ego_turn: greatest speed of turning of the vehicle in radians per second.
        ego_tilt: greatest pitch and roll of the vehicle in radians.
        size_noise: standard deviation of sizes as a fraction of the class's typical size.
        hue_noise: standard deviation of an object's hue in degrees; classes are 36 apart.
        pixel_noise: standard deviation of the noise of images, in levels of 255.
        min_pixels: visible pixels below which an object counts as having no lidar points.
        jpeg_quality: quality of the images, up to 100.
        seed: what every scene is drawn from, along with its number.
    """

    train_scenes: int = 80
    val_scenes: int = 20
    keyframes: int = 6
    sweeps: int = 0
    width: int = 176
    height: int = 96
    objects: int = 16
    near: float = 4.0
    far: float = 25.0
    moving: float = 0.5
    speed: float = 1.0
    ego_speed: float = 4.0
    ego_turn: float = 0.2
    ego_tilt: float = 0.005
    size_noise: float = 0.08
    hue_noise: float = 9.0
    pixel_noise: float = 6.0
    min_pixels: int = 8
    jpeg_quality: int = 92
    seed: int = 0

    @property
    def folder(self) -> str:
        """A folder name that tells specifications apart."""
        content = json.dumps([VERSION, asdict(self)], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        scenes = f"{self.train_scenes}+{self.val_scenes}x{self.keyframes}"
        size = f"{self.width}x{self.height}"
        return f"cubes_{scenes}_sweeps{self.sweeps}_{size}_seed{self.seed}_{digest}"

    @property
    def num_scenes(self) -> int:
        """The number of scenes of both sets."""
        return self.train_scenes + self.val_scenes

    @property
    def seconds(self) -> float:
        """Time between a scene's first and last keyframe."""
        return (self.keyframes - 1) * KEYFRAME_INTERVAL / 1e6

    def scene_names(self) -> dict[str, list[str]]:
        """Lists the names of the scenes of each split."""
        names = [f"cubes-{i:04d}" for i in range(self.num_scenes)]
        return {"cubes_train": names[: self.train_scenes], "cubes_val": names[self.train_scenes :]}
