"""The client of a keyed model: plain text to keyed ids here, keyed labels or ids back to plain ones here, everything between at the server.

Guarantee class: heuristic. The keyed ids that leave this process are a code with one symbol per token. It stops a reader of traffic or
logs who lacks the weights; a server that holds the transformed weights of an open model recovers the key (100 % of the tokens).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.deploy.keyed_http import Endpoint, KeyedConnection
from privtensors.deploy.keyed_requests import PIXELS_TYPE
from privtensors.deploy.keyed_tls import https_client_context
from privtensors.errors import FrameError, InvalidInput, ParameterError, RequestRefused
from privtensors.obfuscation.client import Client, load_client
from privtensors.obfuscation.folders import Manifest

_LONGEST: Final = 1 << 20  # a tokenizer without a limit states 10 ** 30


@dataclass(frozen=True, slots=True)
class Prediction:
    """A label with its probability.

    Attributes:
        label: The likeliest, by its plain name.
        score: Its probability; for a model with one output, that output.
        scores: Every label and its probability, largest first.
    """

    label: str
    score: float
    scores: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class TokenPrediction:
    """The label of one token of a text: ``text[start:end]``."""

    text: str
    start: int
    end: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Continuation:
    """A generated text.

    Attributes:
        text: Prompt and continuation, as the tokenizer writes both, without special tokens.
        new_tokens: How many tokens were generated.
        ids: Plain ids of prompt and continuation.
    """

    text: str
    new_tokens: int
    ids: tuple[int, ...]


class KeyedClient:
    """Asks a keyed server. Each call opens one connection and checks the server's key id on it before anything else is sent.

    Args:
        folder: The client folder that ``privtensors convert`` wrote.
        server: ``"https://HOST:PORT"``, or ``"http://HOST:PORT"`` on this machine.
        passphrase: Of the key file, where it is wrapped by one.
        authority: PEM file of the authority that issued the server's certificate; default: the system's authorities.
        certificate: PEM file that this client shows, where the server asks for one.
        certificate_key: Its private key.
        tls_name: The name that the server's certificate carries, where that is not the host.
        insecure_http: Allow plain HTTP beyond this machine.
        timeout: Seconds to connect, and to wait for the next bytes of an answer.

    Raises:
        FileFormatError: The folder is half-written or damaged.
        UnpairedFolders: It is a server folder.
        WrongKey: The key file is missing, open to others, or does not open with this passphrase.
        UsageError: The address is none, or plain HTTP beyond this machine.
        TransportError: A certificate file cannot be used.
    """

    def __init__(
        self,
        folder: str | Path,
        server: str,
        *,
        passphrase: str | None = None,
        authority: Path | None = None,
        certificate: Path | None = None,
        certificate_key: Path | None = None,
        tls_name: str | None = None,
        insecure_http: bool = False,
        timeout: float = 60.0,
    ) -> None:
        context = None
        if server.startswith("https:"):
            context = https_client_context(authority=authority, certificate=certificate, key=certificate_key)
        self._endpoint = Endpoint.parse(server, context, tls_name=tls_name, insecure_http=insecure_http, timeout=timeout)
        self._client: Client = load_client(folder, passphrase=passphrase)

    @property
    def manifest(self) -> Manifest:
        """What the client folder says of itself."""
        return self._client.manifest

    @property
    def image_processor(self) -> Any:
        """That of the client folder; None for a model of text."""
        return self._client.image_processor

    def model(self) -> dict[str, Any]:
        """What the server says about its model: task, limits, number of labels. Nothing of the client's is sent.

        Raises:
            UnpairedFolders: The server has a model of another key or conversion.
            TransportError: The server cannot be reached, or what answers is none.
        """
        with self._checked() as (_, info):
            return info

    def classify(self, texts: Sequence[str], *, max_length: int | None = None, batch: int = 16) -> list[Prediction]:
        """A label for each text.

        Args:
            texts: Plain texts. Longer ones than model and ``max_length`` allow are cut.
            max_length: Most tokens of a text.
            batch: Texts per request; one at a time where the tokenizer has no padding token.

        Raises:
            InvalidInput: No text, an empty one, or one without a token.
            UnpairedFolders: The server has a model of another key; nothing was sent.
            RequestRefused: The server does not take the request, or does another task.
            TransportError: The server cannot be reached, is busy, or its answer is none.
        """
        found: list[Prediction] = []
        with self._checked("text-classification") as (connection, info):
            for inputs in self._tokenized(texts, info, max_length, batch):
                logits = self._logits(connection, info, inputs, (len(inputs["input_ids"]),))
                found += [self._prediction(row, info) for row in logits]
        return found

    def tag(self, texts: Sequence[str], *, max_length: int | None = None, batch: int = 16) -> list[list[TokenPrediction]]:
        """A label for each token of each text, special tokens left out. Arguments and errors as :meth:`classify`."""
        found: list[list[TokenPrediction]] = []
        with self._checked("token-classification") as (connection, info):
            for inputs in self._tokenized(texts, info, max_length, batch):
                shape = (len(inputs["input_ids"]), len(inputs["input_ids"][0]))
                logits = self._logits(connection, info, inputs, shape)
                for row, text in enumerate(texts[len(found) : len(found) + shape[0]]):
                    places = zip(inputs["offset_mapping"][row], inputs["special_tokens_mask"][row], logits[row], strict=True)
                    found.append([self._tagged(text, place, values, info) for place, special, values in places if not special])
        return found

    def classify_pixels(self, pixel_values: Tensor) -> list[Prediction]:
        """A label for each image.

        Args:
            pixel_values: float32 (batch, C, H, W), as the image processor of the client folder gives them. They are keyed here.

        Raises:
            InvalidInput: Another dtype or shape, or not finite.
            UnpairedFolders, RequestRefused, TransportError: As :meth:`classify`.
        """
        from safetensors.torch import save

        if pixel_values.dim() != 4 or not len(pixel_values) or not bool(pixel_values.isfinite().all()):
            raise InvalidInput("must be finite, (batch, C, H, W)", where="pixel_values", fix="Give what the image processor returns")
        with self._checked("image-classification") as (connection, info):
            keyed = self._client.key_pixels(pixel_values)
            body = save({"pixel_values": keyed.float().contiguous()}, metadata={"key_id": self.manifest.key_id})
            answer = connection.post("/v1/classify", body, PIXELS_TYPE)
            return [self._prediction(row, info) for row in self._decoded(answer, (len(pixel_values),))]

    def generate(
        self,
        texts: Sequence[str],
        *,
        max_new_tokens: int = 20,
        max_length: int | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> list[Continuation]:
        """Continue each text: greedy, or sampled at the server. One request per text, so that none is padded.

        Args:
            texts: Prompts.
            max_new_tokens: Most tokens to generate for each.
            max_length: Most tokens of a prompt; its end is cut off.
            do_sample: Sample instead of taking the likeliest token.
            temperature: With ``do_sample``: above 0, at most 100.
            top_p: With ``do_sample``: above 0, at most 1.
            seed: With ``do_sample``: makes the server's draws repeatable. Default: it draws a seed.

        Raises:
            InvalidInput, UnpairedFolders, RequestRefused, TransportError: As :meth:`classify`.
            ParameterError: ``temperature``, ``top_p`` or ``seed`` without ``do_sample``.
        """
        sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_p": top_p} if do_sample else {}
        if not do_sample and (temperature != 1.0 or top_p != 1.0 or seed is not None):
            raise ParameterError("temperature, top_p and seed need do_sample=True", where="generate", fix="Add it, or leave them out")
        if seed is not None:
            sampling["seed"] = seed
        found: list[Continuation] = []
        with self._checked("text-generation") as (connection, info):
            most = info["positions"] - max_new_tokens if info["positions"] else None
            if most is not None and most < 1:
                raise RequestRefused(f"the model has {info['positions']} positions", where="max_new_tokens", fix="Ask for fewer")
            longest = min(x for x in (most, max_length, _LONGEST) if x is not None)
            for inputs in self._tokenized(texts, info, longest, 1):
                prompt = inputs["input_ids"][0]
                request = {"input_ids": [prompt], "max_new_tokens": max_new_tokens, **sampling}
                answer = self._post(connection, "/v1/generate", request)
                new = self._new_ids(answer, info["vocabulary"], max_new_tokens)
                text = self._client.tokenizer.decode([*prompt, *new], skip_special_tokens=True)
                found.append(Continuation(str(text), len(new), tuple(self._plain_ids([*prompt, *new]))))
        return found

    def embed(self, texts: Sequence[str], *, max_length: int | None = None, batch: int = 16) -> Tensor:
        """The mean of the last hidden states over each text's tokens, in the plain model's basis: float64 (texts, width).

        Arguments and errors as :meth:`classify`. Embeddings of short texts give most of the text away (Morris et al., 2023): the
        server sees them in its keyed basis only, and whoever is given the plain ones can invert them.
        """
        found: list[Tensor] = []
        with self._checked("feature-extraction") as (connection, info):
            for inputs in self._tokenized(texts, info, max_length, batch):
                values = self._numbers(self._post(connection, "/v1/embed", self._request(info, inputs)), "embeddings")
                if values.shape != (len(inputs["input_ids"]), self.manifest.options.get("width")):
                    raise self._malformed("embeddings")
                found.append(self._client.decode_hidden(values))
        return torch.cat(found)

    @contextmanager
    def _checked(self, task: str | None = None) -> Iterator[tuple[KeyedConnection, dict[str, Any]]]:
        """A connection to the right server, and what that says. The check comes before anything of the client's is sent."""
        with KeyedConnection(self._endpoint) as connection:
            info = connection.check(self.manifest.key_id, self.manifest.weights)
            numbers = (info.get("vocabulary"), info.get("token_types"), info.get("positions"), info.get("labels"))
            if not all(type(n) is int and n >= 0 for n in numbers):
                raise FrameError("what the server says about its model is malformed", where=str(self._endpoint), fix="check the address")
            if task is not None and info.get("task") != task:
                what = f"the server does {str(info.get('task'))[:40]!a}, not {task}"
                raise RequestRefused(what, where=str(self._endpoint), fix="Use the method for its task; nothing was sent")
            yield connection, info

    def _tokenized(self, texts: Sequence[str], info: Mapping[str, Any], most: int | None, batch: int) -> Iterator[dict[str, Any]]:
        """Keyed ids of the texts by batches, padded to the longest of each."""
        if isinstance(texts, str) or not texts or any(not isinstance(t, str) or not t.strip() for t in texts):
            raise InvalidInput("must be a list of texts, none empty", where="texts", fix='Give ["…"]')
        if batch < 1:
            raise ParameterError(f"{batch} texts in a batch", where="batch", fix="Give a number from 1")
        tokenizer = self._client.tokenizer
        lengths = (most, info["positions"] or None, tokenizer.model_max_length, _LONGEST)
        longest = int(min(length for length in lengths if length is not None))
        step = batch if tokenizer.pad_token is not None else 1
        for start in range(0, len(texts), step):
            some = list(texts[start : start + step])
            found = tokenizer(
                some,
                padding=step > 1,
                padding_side="right",  # GPT-2 counts positions from the first id, padding or not
                truncation=True,
                max_length=longest,
                return_special_tokens_mask=True,
                return_offsets_mapping=True,
                return_attention_mask=True,
            )
            if not all(len(row) for row in found["input_ids"]):
                raise InvalidInput("a text without any token", where="texts", fix="Give some words")
            yield dict(found)

    def _logits(self, connection: KeyedConnection, info: Mapping[str, Any], inputs: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
        return self._decoded(self._post(connection, "/v1/classify", self._request(info, inputs)), shape)

    def _request(self, info: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        request = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        if info["token_types"] and any(map(any, inputs.get("token_type_ids", ()))):
            request["token_type_ids"] = inputs["token_type_ids"]
        return request

    def _post(self, connection: KeyedConnection, path: str, request: Mapping[str, Any]) -> dict[str, Any]:
        return connection.post(path, json.dumps({"key_id": self.manifest.key_id, **request}, separators=(",", ":")).encode())

    def _decoded(self, answer: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
        """Logits in plain order of labels, float64 (\\*shape, labels)."""
        logits, labels = self._numbers(answer, "logits"), self._client.labels
        if labels is None or logits.shape != (*shape, labels.size):
            raise self._malformed("logits")
        return labels.decode_logits(logits)

    def _numbers(self, answer: Mapping[str, Any], name: str) -> Tensor:
        try:
            found = torch.tensor(answer[name], dtype=torch.float64)
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise self._malformed(name) from None
        if not bool(found.isfinite().all()):
            raise self._malformed(name)
        return found

    def _malformed(self, name: str) -> FrameError:
        return FrameError(f"the answer does not hold the {name} that were asked for", where=str(self._endpoint), fix="check the server")

    def _plain_ids(self, keyed: list[int]) -> list[int]:
        vocabulary = self._client.vocabulary
        if vocabulary is None or any(n >= vocabulary.size for n in keyed):
            raise self._malformed("ids")
        plain: list[int] = vocabulary.decode(torch.tensor(keyed)).tolist()
        return plain

    def _new_ids(self, answer: Mapping[str, Any], vocabulary: int, most: int) -> list[int]:
        rows = answer.get("output_ids")
        row = rows[0] if isinstance(rows, list) and len(rows) == 1 else None
        if not isinstance(row, list) or len(row) > most or not all(type(n) is int and 0 <= n < vocabulary for n in row):
            raise self._malformed("ids")
        return row

    def _name(self, index: int) -> str:
        names = self.manifest.labels
        return names[index] if index < len(names) else f"LABEL_{index}"

    def _prediction(self, logits: Tensor, info: Mapping[str, Any]) -> Prediction:
        if len(logits) == 1:  # a regression
            value = float(logits[0])
            return Prediction(self._name(0), value, ((self._name(0), value),))
        ranked = (logits.sigmoid() if info.get("multi_label") is True else logits.softmax(-1)).sort(descending=True, stable=True)
        pairs = zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True)
        scores = tuple((self._name(index), share) for index, share in pairs)
        return Prediction(*scores[0], scores)

    def _tagged(self, text: str, place: tuple[int, int], logits: Tensor, info: Mapping[str, Any]) -> TokenPrediction:
        best = self._prediction(logits, info)
        return TokenPrediction(text[place[0] : place[1]], *place, best.label, best.score)
