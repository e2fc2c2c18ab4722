"""The demo's work: train in plain, share the weights, classify with both models on the same batches, verify the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.accounting import Ledger
from privtensors.cli.demo_job import CHECKED, DEMO_TOKENS, Request, load_own, own_limit
from privtensors.cli.demo_result import Answer, Cost, Job, LedgerVerdict, Text, Training
from privtensors.cli.demo_training import EPOCHS, Stopwatch, Tick, encode, frozen_part, stock_classifier, train
from privtensors.cli.stages import Stages
from privtensors.core.session import Session
from privtensors.errors import InvalidInput
from privtensors.hf import PrivateModel, wrap
from privtensors.policy import Policy
from privtensors.testing.assets import minilm_path, movie_reviews, split_reviews

BATCH: Final = 4


def plain_accuracy(model: Any, tokenizer: Any, texts: Sequence[Text], *, tokens: int, tick: Tick) -> float:
    """Fraction of labelled texts that the plain model gets right."""
    right = 0
    with torch.no_grad():
        for group, inputs in encode(tokenizer, [text.text for text in texts], tokens=tokens, batch=32):
            for index, label in zip(group, model(**inputs).logits.argmax(-1).tolist(), strict=True):
                right += model.config.id2label[label] == texts[index].label
            tick(len(group))
    return right / len(texts)


def classify(
    model: Any, private: PrivateModel, session: Session, tokenizer: Any, texts: Sequence[Text], *, tokens: int, tick: Tick
) -> tuple[tuple[Answer, ...], Cost]:
    """Classify every text with the plain and the private model on the same batches; only the private work is measured.

    Raises:
        InvalidInput: The plain model answers NaN or infinity.
        PrivTensorsError: As calling ``private``.
    """
    answers: list[Answer | None] = [None] * len(texts)
    lengths = [len(ids) for ids in tokenizer([text.text for text in texts])["input_ids"]]
    forwards, wall, cpu = 0, 0.0, 0.0
    with session.meter.scope() as scope:
        for group, inputs in encode(tokenizer, [text.text for text in texts], tokens=tokens, batch=BATCH):
            with torch.no_grad():
                plain = model(**inputs).logits.float()
            if not bool(torch.isfinite(plain).all()):
                raise InvalidInput("the plain model itself answers NaN or infinity", where="demo", fix="Load another checkpoint")
            watch = Stopwatch()
            hidden: Tensor = private(**inputs)["logits"].float()
            wall, cpu, forwards = wall + watch.wall_seconds, cpu + watch.cpu_seconds, forwards + 1
            for row, index in enumerate(group):
                read = int(inputs["attention_mask"][row].sum())
                answers[index] = _answer(model.config, texts[index], read, lengths[index] > read, plain[row], hidden[row])
            tick(len(group))
    return tuple(a for a in answers if a is not None), Cost.of(forwards, scope.spent, wall, cpu)


def _answer(config: Any, text: Text, tokens: int, truncated: bool, plain: Tensor, private: Tensor) -> Answer:
    def confidence(logits: Tensor) -> float:
        several = config.problem_type == "multi_label_classification"
        return float((logits.sigmoid() if several else logits.softmax(-1)).max())

    first, second = plain.topk(2).values.tolist()
    return Answer(
        text=text.text,
        label=text.label,
        tokens=tokens,
        truncated=truncated,
        plain=config.id2label[int(plain.argmax())],
        private=config.id2label[int(private.argmax())],
        plain_confidence=confidence(plain),
        private_confidence=confidence(private),
        plain_margin=first - second,
        logit_error=float((plain - private).abs().max()),
        plain_logits=tuple(plain.tolist()),
        private_logits=tuple(private.tolist()),
    )


def verdict(ledger: Ledger) -> LedgerVerdict:
    """Verify the whole chain and count the reveals of this run.

    Raises:
        LedgerCorrupt: The chain does not hold.
        LedgerError: The ledger cannot be read.
    """
    found = ledger.verify()
    return LedgerVerdict(str(ledger.path), found.rows, len(ledger.entries(session=ledger.session, kind="reveal")), str(found.head))


def run(request: Request, ledger: Ledger, stages: Stages) -> Job:
    """See ``demo_job.run``; transformers is quiet and the ledger open."""
    training: Training | None = None
    checked: float | None = None
    held_out: list[Text] = []
    if request.model is None:
        model, tokenizer, training, held_out = _trained(request, stages)
        tokens, name = request.max_tokens or DEMO_TOKENS, "all-MiniLM-L6-v2 with a sentiment head"
        with stages.stage(f"plain model on {len(held_out[:CHECKED])} held-out reviews", total=CHECKED) as tick:
            checked = plain_accuracy(model, tokenizer, held_out[:CHECKED], tokens=tokens, tick=tick)
    else:
        with stages.stage(f"loading {request.model}"):
            model, tokenizer = load_own(request.model)
        tokens, name = own_limit(model, tokenizer, request.max_tokens), request.model
    texts = [Text(text) for text in request.texts] or held_out[: request.reviews]
    with Session(recorder=ledger) as session:
        watch = Stopwatch()
        with stages.stage("sharing the weights"), session.meter.scope() as scope:
            private = wrap(model, Policy(infer=["mpc"]), session=session, progress=False)
        setup = Cost.of(0, scope.spent, watch.wall_seconds, watch.cpu_seconds)
        with stages.stage(f"classifying {len(texts)} texts on secret shares", total=len(texts)) as tick:
            answers, forwards = classify(model, private, session, tokenizer, texts, tokens=tokens, tick=tick)
        return Job(
            model=name,
            model_class=type(model).__name__,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            max_tokens=tokens,
            training=training,
            check_texts=len(held_out[:CHECKED]),
            check_accuracy=checked,
            answers=answers,
            setup=setup,
            forwards=forwards,
            ledger=verdict(ledger),
            explanation=private.explain(),
            simulated=session.backend(private.technique).simulated,
        )


def _trained(request: Request, stages: Stages) -> tuple[Any, Any, Training, list[Text]]:
    """The demo's model, its tokenizer, how it was trained, and the held-out reviews in the order of the split."""
    from transformers import AutoTokenizer

    tokens = request.max_tokens or DEMO_TOKENS
    with stages.stage("loading MiniLM and the reviews"):
        path = minilm_path()
        model = stock_classifier(path)
        # A review says its verdict at its end, so the last tokens are kept.
        tokenizer: Any = AutoTokenizer.from_pretrained(path, truncation_side="left", local_files_only=True)
        split = split_reviews(movie_reviews())
    reviews = split.train[: request.train]
    watch = Stopwatch()
    with stages.stage(f"reading {len(reviews)} training reviews, in plain", total=len(reviews)) as tick:
        batches = frozen_part(model, tokenizer, reviews, tokens=tokens, tick=tick)
    with stages.stage("training the head and the last layer, in plain", total=EPOCHS * len(reviews)) as tick:
        parameters, accuracy = train(model, batches, tick=tick)
    training = Training(len(reviews), parameters, EPOCHS, accuracy, watch.wall_seconds, watch.cpu_seconds)
    return model, tokenizer, training, [Text(r.text, model.config.id2label[r.label]) for r in split.test]
