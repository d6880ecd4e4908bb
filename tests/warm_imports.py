"""Imported once by the server of warm.py."""

import warnings

warnings.simplefilter("ignore")

import groupdetr_d2.engine.main  # noqa: E402, F401  what every training needs
import groupdetr_d2.inference.prediction  # noqa: E402, F401
