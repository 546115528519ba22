"""FastEmbed's Muvera encodes documents one by one, as it does, in an environment of its own (see `harness.Worker`)."""

import numpy as np


def prepare(docs, repetitions, bits, projected):
    from fastembed.postprocess.muvera import Muvera

    made = Muvera(docs.shape[-1], int(bits), int(projected), int(repetitions))
    return lambda: np.stack([made.process_document(document) for document in docs])
