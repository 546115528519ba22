"""UniRepLKNet on other modalities: so far its backbone on maps of any number of channels."""

from __future__ import annotations

from adapters import model
from adapters.unireplknet import network

model("22-unireplknet-scaling", "unireplknet_*", "UniRepLKNet")(network)
