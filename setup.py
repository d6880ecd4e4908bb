"""Packaging; the exact versions that are tested together stand in requirements/constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

EXPORT = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]
OPENVINO = ["openvino>=2025.0"]  # tested with 2026.4; export runs without it
SERVE = ["gradio>=5"]
FAST = ["faster-coco-eval>=1.6"]  # evaluation in a tenth of the time; pycocotools otherwise
NUSCENES = ["nuscenes-devkit>=1.2,<2", "tqdm"]  # which needs NumPy below 2
HUB = ["huggingface_hub>=0.30"]  # weights from hf://owner/name
TRANSFORMERS = ["transformers>=4.50"]  # backbones of its AutoBackbone
TIMM = ["timm>=1.0", *TRANSFORMERS]  # those of timm among them
LOGGERS = {"wandb": ["wandb>=0.17"], "mlflow": ["mlflow>=2.14"]}  # of the key LOGGERS
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26"]
TEST = ["pytest>=8", "pytest-xdist>=3.5", "playwright>=1.45"]
TEST += [*EXPORT, *SERVE, *FAST, *NUSCENES, *HUB, *TIMM]


class BuildWithConfigs(build_py):
    """configs/ stands beside the package in the repository, and inside it once installed."""

    def run(self):
        super().run()
        for source in () if self.editable_mode else sorted(Path("configs").rglob("*.yaml")):
            target = Path(self.build_lib, "groupdetr_d2", source)
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))


setup(
    name="groupdetr_d2",
    version="0.1.0",
    description="Group DETR (ICCV 2023) for every DETR of the paper, as a Detectron2 plugin",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    cmdclass={"build_py": BuildWithConfigs},
    packages=find_packages(include=["groupdetr_d2*"]),
    # with it an editable installation is a path, which a folder that is called like the package and
    # holds the clone does not hide
    package_dir={"": "."},
    package_data={"groupdetr_d2": ["py.typed"]},
    entry_points={"console_scripts": ["groupdetr-d2 = groupdetr_d2.commands:run"]},
    install_requires=[
        # Detectron2 is not listed: there is no official wheel, see README.md, "Installation"
        "torch>=2.4",
        "torchvision>=0.19",
        "scipy>=1.10",
        "fvcore>=0.1.5.post20221221",
        "pycocotools>=2.0.7",
        "opencv-python-headless>=4.8",
        "safetensors>=0.4",
        "msgspec>=0.18",  # annotation files
        "shtab>=1.7",  # shell completion, pure Python
        "noto-cjk-sans-otc",  # one font (15 MB), for class names in Chinese, Japanese and Korean
    ],
    extras_require={
        # what Detectron2 itself imports, for installations of it without dependencies
        "detectron2": [
            "numpy<2",
            "setuptools<81",
            "iopath>=0.1.9",
            "omegaconf>=2.3,<2.4",
            "hydra-core>=1.3,<1.4",
            "matplotlib",
            "tensorboard",
            "cloudpickle",
            "tabulate",
            "termcolor",
            "yacs",
            "pillow",
            "tqdm",
        ],
        "export": EXPORT,
        "openvino": OPENVINO,
        "serve": SERVE,
        "fast": FAST,
        "nuscenes": NUSCENES,
        "hub": HUB,
        "transformers": TRANSFORMERS,
        "timm": TIMM,
        **LOGGERS,
        "test": TEST,
        "docs": DOCS,
        "dev": [*TEST, *DOCS, "ruff>=0.5", "mypy>=1.10", "pre-commit>=3"],
    },
)
