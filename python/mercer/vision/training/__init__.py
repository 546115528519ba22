"""Training and evaluation of image classifiers, once for all backbones: Lightning does the loop.

    from mercer.vision import training
    training.fit("mercer_unireplknet_a", "imagenet", out="run", recipe=training.RECIPES["unireplknet_a"])

A recipe is data (:class:`Recipe`, :data:`RECIPES` has the papers' own); data are a folder of ``train/CLASS/*`` and
``val/CLASS/*`` or arrays (:func:`open_data`). A killed run goes on where its last epoch ended. Needs Lightning:
``pip install 'mercer-kernels[train]'``.
"""

from mercer.vision.training.data import Data, open_data
from mercer.vision.training.recipes import RECIPES, Recipe
from mercer.vision.training.run import Scores, fit, validate

__all__ = ["RECIPES", "Data", "Recipe", "Scores", "fit", "open_data", "validate"]
