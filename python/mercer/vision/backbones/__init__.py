"""Backbones: one readable file a family, all of one form.

- :mod:`~mercer.vision.backbones.inceptionnext`: Yu et al. 2024
- :mod:`~mercer.vision.backbones.unireplknet`: Ding et al. 2024
- :mod:`~mercer.vision.backbones.overlock`: Lou and Yu 2025

Every published variant is in timm's registry once ``mercer.vision`` is imported; :func:`variants` lists them.
"""

from mercer.vision.backbones._checkpoint import load_official
from mercer.vision.backbones._family import Backbone, Variant, all_macs, macs, variants
from mercer.vision.backbones.inceptionnext import InceptionNeXt
from mercer.vision.backbones.overlock import OverLoCK
from mercer.vision.backbones.unireplknet import UniRepLKNet

__all__ = [
    "Backbone",
    "InceptionNeXt",
    "OverLoCK",
    "UniRepLKNet",
    "Variant",
    "all_macs",
    "load_official",
    "macs",
    "variants",
]
