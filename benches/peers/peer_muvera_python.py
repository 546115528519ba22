"""muvera-python 0.2.0 encodes a batch of documents, in an environment of its own (see `harness.Worker`)."""


def prepare(docs, repetitions, bits, projected, final):
    from muvera import Muvera

    made = Muvera(
        num_repetitions=int(repetitions),
        num_simhash_projections=int(bits),
        dimension=docs.shape[-1],
        projection_type="ams_sketch" if projected else "identity",
        projection_dimension=int(projected) or None,
        final_projection_dimension=int(final) or None,
    )
    documents = list(docs)
    return lambda: made.encode_documents(documents)
