"""Vision models made from :mod:`mercer.nn`; importing it registers them in timm as ``mercer_<family>_<variant>``.

Needs timm: ``pip install 'mercer-kernels[vision]'``.

Example:
    >>> import timm, mercer.vision
    >>> model = timm.create_model("mercer_unireplknet_a", num_classes=10)
    >>> sum(p.numel() for p in model.parameters())
    4331270
"""

try:
    import timm  # noqa: F401
except ImportError as error:
    raise ImportError("mercer.vision needs timm: pip install 'mercer-kernels[vision]'") from error

from mercer.vision import backbones

__all__ = ["backbones"]
