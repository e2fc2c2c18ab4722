"""The keyed server's other tasks: generation and pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import save

from privtensors.deploy.keyed_requests import PIXELS_TYPE, KeyedLimits
from privtensors.deploy.keyed_server import KeyedServer
from tests.unit.deploy.keyed_places import ask, pair, serving

LIMITS = KeyedLimits(batch=4, tokens=200, new_tokens=8, body_kib=16)
CLASSIFY = "/v1/classify"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    with serving(pair(tmp_path_factory.mktemp("llama"), "llama", "ForCausalLM").server, limits=LIMITS) as found:
        yield found


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    with serving(pair(tmp_path_factory.mktemp("vit"), "vit").server, limits=LIMITS) as found:
        yield found


def test_greedy_generation_is_that_of_the_stock_model(llama: KeyedServer) -> None:
    ids = [[9, 8, 7, 6]]
    status, answer = ask(llama, "POST", "/v1/generate", {"input_ids": ids, "max_new_tokens": 6})
    expected = llama.model._model.generate(torch.tensor(ids), attention_mask=torch.ones(1, 4), max_new_tokens=6, do_sample=False)
    assert status == 200 and answer["output_ids"] == expected[:, 4:].tolist()


def test_sampling_is_repeatable_with_a_seed_only(llama: KeyedServer) -> None:
    def sample(**more: Any) -> Any:
        request = {"input_ids": [[9, 8, 7, 6]], "max_new_tokens": 8, "do_sample": True, "temperature": 3.0} | more
        return ask(llama, "POST", "/v1/generate", request)[1]["output_ids"]

    state = torch.random.get_rng_state()
    assert sample(seed=5) == sample(seed=5) != sample(seed=6)
    assert len({str(sample()) for _ in range(4)}) > 1
    assert (
        sample(temperature=0.001, seed=1)
        == ask(llama, "POST", "/v1/generate", {"input_ids": [[9, 8, 7, 6]], "max_new_tokens": 8})[1]["output_ids"]
    )
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("more", "status", "kind"),
    [
        ({"max_new_tokens": 0}, 400, "invalid_value"),
        ({"max_new_tokens": 9}, 400, "invalid_value"),
        ({"max_new_tokens": 1.5}, 400, "invalid_value"),
        ({"do_sample": 1}, 400, "invalid_value"),
        ({"temperature": 0.5}, 400, "invalid_value"),
        ({"do_sample": True, "temperature": 0}, 400, "invalid_value"),
        ({"do_sample": True, "temperature": True}, 400, "invalid_value"),
        ({"do_sample": True, "temperature": 10**400}, 400, "invalid_value"),
        ({"do_sample": True, "top_p": 1.1}, 400, "invalid_value"),
        ({"do_sample": True, "seed": -1}, 400, "invalid_value"),
        ({"do_sample": True, "seed": 2**63}, 400, "invalid_value"),
        ({"outputs": "labels"}, 400, "unknown_field"),
        ({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [1, 0]]}, 400, "invalid_value"),
        ({"input_ids": [[1] * 60], "max_new_tokens": 5}, 413, "too_long"),
    ],
)
def test_bad_generation_requests(llama: KeyedServer, more: dict[str, Any], status: int, kind: str) -> None:
    got, answer = ask(llama, "POST", "/v1/generate", {"input_ids": [[1, 2]]} | more)
    assert (got, answer["error"]["type"]) == (status, kind), answer


@pytest.mark.parametrize(("stop", "kind"), [(True, "stopping"), (False, "too_slow")])
def test_a_generation_is_given_up(llama: KeyedServer, stop: bool, kind: str) -> None:
    from privtensors.deploy.keyed_requests import GenerateRequest, Refusal

    ids = torch.tensor([[1, 2]])
    request = GenerateRequest({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 8)
    with pytest.raises(Refusal) as caught:
        llama.model.generate(request, 100.0 if stop else -1.0, lambda: stop)
    assert caught.value.kind == kind


# Pixels


def test_pixels(vit: KeyedServer) -> None:
    pixels = torch.randn(2, 3, 16, 16)
    status, answer = ask(vit, "POST", CLASSIFY, save({"pixel_values": pixels}), PIXELS_TYPE)
    with torch.no_grad():
        assert status == 200 and torch.equal(torch.tensor(answer["logits"]), vit.model._model(pixel_values=pixels).logits)
    status, answer = ask(vit, "POST", CLASSIFY, {"input_ids": [[1]]})
    assert (status, answer["error"]["type"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda p: b"", "malformed_pixels"),
        (lambda p: b"\xff" * 8, "malformed_pixels"),
        (lambda p: b"\x02" + b"\0" * 7 + b"[]", "malformed_pixels"),
        (lambda p: save({"pixel_values": p})[:-1], "malformed_pixels"),
        (lambda p: save({"pixels": p}), "malformed_pixels"),
        (lambda p: save({"pixel_values": p, "more": p.clone()}), "malformed_pixels"),
        (lambda p: save({"pixel_values": p.double()}), "malformed_pixels"),
        (lambda p: save({"pixel_values": p[0]}), "invalid_shape"),
        (lambda p: save({"pixel_values": torch.ones(1, 3, 8, 16)}), "invalid_shape"),
        (lambda p: save({"pixel_values": p[:0]}), "invalid_shape"),
        (lambda p: save({"pixel_values": torch.cat([p] * 5)}), "invalid_shape"),
        (lambda p: save({"pixel_values": p / 0}), "invalid_value"),
        (lambda p: save({"pixel_values": p}, metadata={"key_id": "0"}), "wrong_key"),
    ],
)
def test_bad_pixels(vit: KeyedServer, make: Callable[[torch.Tensor], bytes], kind: str) -> None:
    status, answer = ask(vit, "POST", CLASSIFY, make(torch.ones(1, 3, 16, 16)), PIXELS_TYPE)
    assert status in (400, 409) and answer["error"]["type"] == kind


# Starting
