"""Special functions that keep their digits where the usual ones leave float64.

log I_v(x), log K_v(x), their ratios and derivatives, for every order and argument: von Mises-Fisher
distributions in thousands of dimensions, Matérn kernels of any smoothness, Skellam, Rice, non-central
chi-square and generalised inverse Gaussian likelihoods. Functions broadcast like ufuncs, keep float32 and
float64, take ``out=`` and ``threads=``, and release the GIL. For x in a moderate range and values rather than
logarithms `scipy.special.iv` is enough; torch tensors and gradients: `mercer.nn.special`.
"""

from mercer.special._bessel import *  # noqa: F403
from mercer.special._bessel import __all__ as __all__
