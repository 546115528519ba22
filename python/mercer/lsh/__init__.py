"""Locality-sensitive hashes: what is alike gets the same small integer more often than what is not.

`SimHash` for angles, `CrossPolytope` for angles too with many buckets a hash, `E2LSH` for distances, `MinHash` for
sets. Each draws its directions from counters, so that one seed gives the same bits on any machine and any number of
threads, or takes matrices that are given; each saves its state.
"""

from mercer.lsh._family import Family
from mercer.lsh._minhash import MinHash
from mercer.lsh._vectors import E2LSH, CrossPolytope, SimHash

__all__ = ["E2LSH", "CrossPolytope", "Family", "MinHash", "SimHash"]
