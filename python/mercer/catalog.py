"""The 79 systems of mercer: number, slug, title, where each lives or will live, and whether it has landed.

The table below is the only place to touch when a system lands: its modules and its last column.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from typing import Literal

__all__ = ["System", "find", "systems"]


@dataclass(frozen=True, slots=True)
class System:
    """One paper and its place in the library.

    Attributes
    ----------
    number : int
        1 to 79.
    slug : str
        What `mercer show` and `mercer reproduce` take.
    title : str
        Of the paper.
    modules : tuple of str
        Where it lives, or will live while it is planned.
    status : {"landed", "planned"}
    """

    number: int
    slug: str
    title: str
    modules: tuple[str, ...]
    status: Literal["landed", "planned"]

    @property
    def reproduce(self) -> str:
        """The module that runs the paper's claims."""
        return f"mercer.reproduce.{self.slug.replace('-', '_')}"


@cache
def systems() -> tuple[System, ...]:
    """All systems in the order of their number.

    >>> len(systems()), systems()[53].slug
    (79, 'log-bessel')
    """
    return tuple(_system(line) for line in _TABLE.strip().splitlines())


def find(slug: str) -> System:
    """The system of a slug; ``LookupError`` with the nearest slugs for one that is not there.

    >>> find("log-bessel").modules[0]
    'mercer.special'
    >>> find("log-besel")
    Traceback (most recent call last):
        ...
    LookupError: slug must be one of `mercer list`, got 'log-besel'; did you mean log-bessel?
    """
    by_slug = {system.slug: system for system in systems()}
    if slug in by_slug:
        return by_slug[slug]
    near = difflib.get_close_matches(slug.lower().replace("_", "-"), by_slug, n=3, cutoff=0.7)
    near += [known for known in by_slug if len(slug) > 2 and slug.lower() in known and known not in near]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise LookupError(f"slug must be one of `mercer list`, got {slug!r}{hint}")


def _system(line: str) -> System:
    number, slug, title, modules, status = line.split(" | ")
    places = tuple(f"mercer.{name}" for name in modules.split())
    return System(int(number), slug, title, places, "landed" if status == "landed" else "planned")


# number | slug | title | modules under mercer | status
_TABLE = """
01 | scatterbrain | Scatterbrain: Unifying Sparse and Low-rank Attention Approximation | nn.attention.scatterbrain | landed
02 | sepc | Scale-Equalizing Pyramid Convolution for Object Detection | vision.detection.pyramid_conv | planned
03 | overlock | OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels | vision.backbones.overlock nn.conv nn.attention.neighborhood | landed
04 | referformer | Language as Queries for Referring Video Object Segmentation | vision.video.referformer nn.attention.deformable | planned
05 | quantum-kernels | Supervised learning with quantum enhanced feature spaces | gram.quantum | planned
06 | tp4 | Feature Learning in Infinite-Width Neural Networks | understand.parametrization | planned
07 | gpf | Learning Robust Generalizable Radiance Field with Visibility and Feature Augmented Point Representation | fields.point_field | planned
08 | cfsr | Transforming Image Super-Resolution: A ConvFormer-based Efficient Approach | vision.restoration.cfsr | planned
09 | ofa-kd | One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation | nn.distillation | planned
10 | yolo-ms | YOLO-MS: Rethinking Multi-Scale Representation Learning for Real-time Object Detection | vision.detection.yolo_ms | planned
11 | krr-st | Self-Supervised Dataset Distillation for Transfer Learning | nn.ridge | planned
12 | neural-snowflakes | Neural Snowflakes: Universal Latent Graph Inference via Trainable Latent Geometries | nn.metric.snowflake | planned
13 | mobilemamba | MobileMamba: Lightweight Multi-Receptive Visual Mamba Network | vision.mobilemamba nn.scan | planned
14 | grokking | Grokking as the Transition from Lazy to Rich Training Dynamics | understand.lazy_rich | planned
15 | hazydet | HazyDet: Open-Source Benchmark for Drone-View Object Detection with Depth-Cues in Hazy Scenes | vision.detection.hazydet | planned
16 | essaformer | ESSAformer: Efficient Transformer for Hyperspectral Image Super-resolution | earth.essaformer | planned
17 | medvitv2 | Medical Image Classification with KAN-Integrated Transformers and Dilated Neighborhood Attention | vision.medvitv2 | planned
18 | ffdnn | A Fast Fourier Convolutional Deep Neural Network For Accurate and Explainable Discrimination Of Wheat Yellow Rust And Nitrogen Deficiency From Sentinel-2 Time-Series Data | earth.ffdnn | planned
19 | unireplknet | UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, Time-Series and Image Recognition | vision.backbones.unireplknet nn.conv | landed
20 | clip-dissection | Dissecting CLIP: Decomposition with a Schur Complement-based Approach | understand.schur | planned
21 | tas | Network Pruning via Transformable Architecture Search | nn.search | planned
22 | unireplknet-scaling | Scaling Up Your Kernels: Large Kernel Design in ConvNets towards Universal Representations | vision.backbones.unireplknet nn.conv | planned
23 | feature-complexity | Going Beyond Neural Network Feature Similarity: The Network Feature Complexity and Its Interpretation Using Category Theory | understand.iterative_merge | planned
24 | unified-embedding | Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML Systems | ctr.unified_embedding | planned
25 | pkl-ofp | Prototypical Kernel Learning and Open-set Foreground Perception for Generalized Few-shot Semantic Segmentation | vision.segmentation.prototypical_kernel | planned
26 | glsim | Global-Local Similarity for Efficient Fine-Grained Image Recognition with Vision Transformers | vision.glsim | planned
27 | private-similarity | Efficiently Computing Similarities to Private Datasets | private | landed
28 | neighborhood-attention | Faster Neighborhood Attention: Reducing the O(n^2) Cost of Self Attention at the Threadblock Level | nn.attention.neighborhood ops.neighborhood | landed
29 | location-encoder | Geographic Location Encoding with Spherical Harmonics and Sinusoidal Representation Networks | earth.location_encoder special.spherical_harmonics | planned
30 | lie-decompositions | Lie Group Decompositions for Equivariant Neural Networks | nn.conv.lie | planned
31 | shortcut-learning | On the Foundations of Shortcut Learning | understand.shortcut | planned
32 | deep-kernel-machines | A theory of representation learning gives a deep generalisation of kernel methods | gram.deep_kernel_machine | planned
33 | crisp | CRISP: Clustering Multi-Vector Representations for Denoising and Pruning | retrieval.clustering nn.retrieval | landed
34 | hyperzzw | HyperZcdotZcdotW Operator Connects Slow-Fast Networks for Full Context Interaction | nn.conv.hyper_zzw | planned
35 | shapesplat | ShapeSplat: A Large-scale Dataset of Gaussian Splats and Their Self-Supervised Pretraining | fields.splats | planned
36 | rotnet | Unsupervised Representation Learning by Predicting Image Rotations | vision.rotation_pretext | planned
37 | mlc | Unsupervised Manifold Linearizing and Clustering | nn.manifold_clustering | planned
38 | inceptionnext | InceptionNeXt: When Inception Meets ConvNeXt | vision.backbones.inceptionnext nn.conv | landed
39 | matryoshka-kv | MatryoshkaKV: Adaptive KV Compression via Trainable Orthogonal Projection | nn.attention.matryoshka | landed
40 | off-the-shelf | CNN Features off-the-shelf: an Astounding Baseline for Recognition | vision.off_the_shelf | planned
41 | neurbf | NeuRBF: A Neural Fields Representation with Adaptive Radial Basis Functions | fields.adaptive_rbf | planned
42 | vectormapnet | VectorMapNet: End-to-end Vectorized HD Map Learning | vision.vectormapnet | planned
43 | dhvt | Bridging the Gap Between Vision Transformers and Convolutional Neural Networks on Small Datasets | vision.dhvt | planned
44 | funbat | Functional Bayesian Tucker Decomposition for Continuous-indexed Tensor Data | density.functional_tucker | planned
45 | gknet | Learning Global-aware Kernel for Image Harmonization | vision.restoration.gknet | planned
46 | ulsam | ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural Networks | nn.attention.subspace | planned
47 | dendromap | DendroMap: Visual Exploration of Large-Scale Image Datasets for Machine Learning with Treemaps | understand.dendrogram | planned
48 | gkcl | Generative Kernel Continual learning | nn.continual_kernel | planned
49 | medical-concepts | Medical Concept Representation Learning from Electronic Health Records and its Application on Heart Failure Prediction | text.medical_concepts | planned
50 | kde-large-dim | Kernel Density Estimators in Large Dimensions | density nn.density | landed
51 | espcn | Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network | vision.restoration.espcn | planned
52 | long-convs | Simple Hardware-Efficient Long Convolutions for Sequence Modeling | nn.conv.long_conv ops.long_conv | planned
53 | moment-probing | Tuning Pre-trained Model via Moment Probing | nn.moment_probe | planned
54 | log-bessel | Accurate Computation of the Logarithm of Modified Bessel Functions on GPUs | special density nn.special nn.distributions | landed
55 | uhdrr | Benchmarking Ultra-High-Definition Image Reflection Removal | vision.restoration.rrformer | planned
56 | rbfnet | Gaussian RBFNet: Gaussian Radial Basis Functions for Fast and Accurate Representation and Reconstruction of Neural Fields | fields.gaussian_rbf | planned
57 | muvera | MUVERA: Multi-Vector Retrieval via Fixed Dimensional Encodings | retrieval.fde retrieval.index | landed
58 | autoint | AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks | ctr.autoint | planned
59 | word-doc-embeddings | Word and Document Embeddings based on Neural Network Approaches | text.word_embedding | planned
60 | gabor-texture | Learning Gabor Texture Features for Fine-Grained Recognition | nn.conv.gabor | planned
61 | mhs-vm | MHS-VM: Multi-Head Scanning in Parallel Subspaces for Vision Mamba | vision.mhs_vm nn.scan | planned
62 | st-protopnet | Learning Support and Trivial Prototypes for Interpretable Image Classification | vision.st_protopnet | planned
63 | nrr-dd | Enhancing Dataset Distillation via Non-Critical Region Refinement | vision.dataset_distillation | planned
64 | representation-bias | Learned feature representations are biased by complexity, learning order, position, and more | understand.representation_bias | planned
65 | skyscript | SkyScript: A Large and Semantically Diverse Vision-Language Dataset for Remote Sensing | earth.skyscript | planned
66 | sgconv | What Makes Convolutional Models Great on Long Sequence Modeling? | nn.conv.sgconv ops.long_conv | planned
67 | open-set | Open-Set Recognition: a Good Closed-Set Classifier is All You Need? | understand.open_set | planned
68 | outrank | OutRank: Speeding up AutoML-based Model Search for Large Sparse Data sets with Cardinality-aware Feature Ranking | ranking | landed
69 | georsclip | RS5M and GeoRSCLIP: A Large Scale Vision-Language Dataset and A Large Vision-Language Model for Remote Sensing | earth.georsclip | planned
70 | ssd | SSD: Single Shot MultiBox Detector | vision.detection.ssd | planned
71 | optfs | Optimizing Feature Set for Click-Through Rate Prediction | ctr.optfs | planned
72 | robustness-lottery | "Understanding Robustness Lottery": A Geometric Visual Comparative Analysis of Neural Network Pruning Approaches | understand.classifier_geometry | planned
73 | feature-reliance | Understanding Visual Feature Reliance through the Lens of Complexity | understand.feature_reliance | planned
74 | wide-cnn | What Can Be Learnt With Wide Convolutional Neural Networks? | gram.wide_cnn | planned
75 | geopix | GeoPix: Multi-Modal Large Language Model for Pixel-level Image Understanding in Remote Sensing | earth.geopix | planned
76 | adaptive-rotated-conv | Adaptive Rotated Convolution for Rotated Object Detection | nn.conv.adaptive_rotated | planned
77 | subspace-learners | Attention-based Dynamic Subspace Learners for Medical Image Analysis | nn.metric.subspace_learner | planned
78 | resisc45 | Remote Sensing Image Scene Classification: Benchmark and State of the Art | earth.scene_features | planned
79 | fod | Focus the Discrepancy: Intra- and Inter-Correlation Learning for Image Anomaly Detection | nn.attention.correlation | planned
"""
