"""Fine-tuning on keyed text: labels where they belong, the same as the plain run, and nothing plain in what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from privtensors.cli.app import app
from privtensors.errors import FileFormatError, ObfuscationError, ParameterError, UnpairedFolders, WrongKey
from privtensors.obfuscation.keys import ObfuscationKey
from privtensors.obfuscation.sentinel import Converted, Example, LocalData, TrainingOptions, calibrate, convert, finetune, load_owner
from privtensors.obfuscation.sentinel.encoding import IGNORED, KeyedEncoder, PlainEncoder, encode_sentences, encode_texts
from privtensors.obfuscation.sentinel.finetuning import keyed_order
from privtensors.obfuscation.sentinel.training import scores
from privtensors.obfuscation.sentinel.words import KeyedWords, WordHash
from tests.unit.obfuscation.models import build, save

KEY, OTHER = ObfuscationKey(bytes(range(32))), ObfuscationKey(bytes(32))
FAST = TrainingOptions(epochs=12, batch_size=4, learning_rate=2e-3, max_seq_length=12)
TEXTS = tuple(
    Example(f"{a} {b} {c}", "good" if b == "film" else "bad")
    for a in ("a", "the", "was") for b in ("film", "plot") for c in ("to remember", "remembering a", "a a", "the to")
)  # fmt: skip
REVIEWS = LocalData(TEXTS[:16], TEXTS[16:], ("bad", "good"))
TAGGED = tuple(
    Example((a, b, "remembering"), ("O", "B-PER" if b == "film" else "B-LOC", "O"))
    for a in ("a", "the", "to", "was") for b in ("film", "plot")
)  # fmt: skip
NEWS = LocalData(TAGGED[:6], TAGGED[6:], ("B-LOC", "B-PER", "O"))


def converted(folder: Path, task: str = "Model", family: str = "bert", **options: Any) -> Converted:
    return convert(save(folder / "plain", *build(family, task)), folder / "keyed", **{"encryption_key": KEY, **options})


@pytest.mark.parametrize("family", ["bert", "roberta", "bert over Unigram"])
def test_a_tag_stands_at_the_first_token_of_its_word_and_not_one_to_the_left(family: str, tmp_path: Path) -> None:
    made = converted(tmp_path, family=family)
    owner, reader = load_owner(made.client), AutoTokenizer.from_pretrained(made.server)
    encoder = KeyedEncoder(owner.words, reader)
    example = Example(("remembering", "EU", "films"), ("B-PER", "O", "B-LOC"))
    encoded = encode_sentences(encoder, [example], ("B-LOC", "B-PER", "O"), 64)
    ids, labels = encoded.rows[0]["input_ids"], encoded.rows[0]["labels"]
    assert isinstance(ids, list) and isinstance(labels, list)
    assert labels[0] == labels[-1] == IGNORED, "what frames a text has no tag; the published script gave [CLS] the first one"
    keyed = owner.encode_words(list(example.text))
    for number, tag in enumerate(example.label):
        first = 1 + keyed.word_ids.index(number)
        assert ids[first] == reader.convert_tokens_to_ids(keyed.words[first - 1])
        assert labels[first] == ("B-LOC", "B-PER", "O").index(tag) and encoded.starts[0][first] == number
    assert sum(label != IGNORED for label in labels) == 3
    cut = encode_sentences(encoder, [example], ("B-LOC", "B-PER", "O"), 4).rows[0]
    assert cut["input_ids"] == [*ids[:3], ids[-1]] and cut["labels"] == [*labels[:3], IGNORED]


def test_keyed_rows_are_the_plain_ones_under_the_key(tmp_path: Path) -> None:
    made = converted(tmp_path)
    owner = load_owner(made.client)
    keyed = KeyedEncoder(owner.words, AutoTokenizer.from_pretrained(made.server))
    plain = PlainEncoder(owner.tokenizer)
    for one, other in zip(
        encode_sentences(keyed, TAGGED, NEWS.labels, 6).rows, encode_sentences(plain, TAGGED, NEWS.labels, 6).rows, strict=True
    ):
        assert one["labels"] == other["labels"] and one["input_ids"] != other["input_ids"]
    texts, others = encode_texts(keyed, TEXTS, REVIEWS.labels, 5), encode_texts(plain, TEXTS, REVIEWS.labels, 5)
    assert [(row["labels"], len(row["attention_mask"])) for row in texts.rows] == [  # type: ignore[arg-type]
        (row["labels"], len(row["attention_mask"])) for row in others.rows  # type: ignore[arg-type]
    ]
    with pytest.raises(FileFormatError, match="does not know"):
        encode_texts(keyed, [Example("a", "awful")], REVIEWS.labels, 5)


@pytest.mark.parametrize("options", [{}, {"compat": True, "encryption_key": "llm123", "shuffle": True}], ids=["hardened", "compat"])
def test_a_keyed_model_learns_and_a_wrong_key_gives_chance(options: dict[str, Any], tmp_path: Path) -> None:
    made = converted(tmp_path, **options)
    given = options.get("encryption_key")
    steps: list[tuple[int, int]] = []


    def advance(done: int, total: int) -> None:
        steps.append((done, total))

    found = finetune(made.server, REVIEWS, tmp_path / "tuned", encryption_key=given, options=FAST, advance=advance)
    assert found.metrics["accuracy"] == found.metrics["f1"] == 1.0
    assert steps[-1] == (48, 48) == (found.steps, found.steps) and (found.train_examples, found.eval_examples) == (16, 8)
    assert found.server is not None and found.client is not None
    again = finetune(found.server, REVIEWS, None, encryption_key=given, do_train=False, options=FAST)
    assert again.metrics == found.metrics and again.server is None
    owner, reader = load_owner(found.client, encryption_key=given), AutoTokenizer.from_pretrained(found.server)
    model = AutoModelForSequenceClassification.from_pretrained(found.server)
    for example in REVIEWS.evaluation:
        logits = model(**reader(owner.encode(str(example.text)), return_tensors="pt")).logits[0]
        assert owner.read(logits.detach()).label == example.label
    wrong = WordHash.of_passkey("llm124") if given else WordHash.of_key(OTHER)
    encoder = KeyedEncoder(KeyedWords(owner.tokenizer, wrong), reader)
    judged = scores(model, encoder, REVIEWS.evaluation, keyed_order(owner, found.labels), "classification", 12)
    assert judged["accuracy"] == 0.5, "every word is unknown, every answer the same"
    with pytest.raises(WrongKey):
        finetune(made.server, REVIEWS, None, encryption_key="llm124" if given else OTHER, do_train=False)


def test_entities_are_learnt_and_judged_whole(tmp_path: Path) -> None:
    made = converted(tmp_path)
    found = finetune(made.server, NEWS, tmp_path / "tuned", task="ner", options=replace(FAST, learning_rate=5e-3))
    assert found.metrics == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert found.server is not None
    cut = finetune(found.server, NEWS, None, task="ner", do_train=False, options=replace(FAST, max_seq_length=3))
    assert cut.metrics["recall"] == 0.0, "words that are cut off count as tagged O"


def test_what_is_written_for_the_server_holds_nothing_plain(tmp_path: Path) -> None:
    made = converted(tmp_path)
    found = finetune(made.server, REVIEWS, tmp_path / "tuned", do_eval=False, options=replace(FAST, epochs=1))
    assert found.metrics == {} and found.server is not None and found.client is not None
    everything = b"".join(path.read_bytes() for path in found.server.iterdir())
    for plain in (b"remember", b"film", b"good", b"bad", KEY.secret, KEY.secret.hex().encode()):
        assert plain not in everything
    assert load_owner(found.client).names == ("bad", "good")
    assert set(AutoConfig.from_pretrained(found.server).id2label.values()) == {"LABEL_0", "LABEL_1"}


def test_a_head_that_was_trained_before_keeps_its_labels(tmp_path: Path) -> None:
    made = converted(tmp_path, "ForSequenceClassification")
    data = LocalData((Example("a film", "cheerful"),), (Example("the plot", "grumpy"),), ("cheerful", "grumpy"))
    found = finetune(made.server, data, tmp_path / "tuned", options=replace(FAST, epochs=1))
    assert found.labels == ("grumpy", "cheerful", "undecided")
    with pytest.raises(FileFormatError, match="does not know"):
        finetune(made.server, REVIEWS, None, do_train=False)
    with pytest.raises(ObfuscationError, match="no head for ner"):
        finetune(made.server, NEWS, None, task="ner", do_train=False)


def test_bad_input(tmp_path: Path) -> None:
    made = converted(tmp_path)
    for options in ({"task": "translation"}, {"do_train": False, "do_eval": False}, {"do_train": True}):
        with pytest.raises(ParameterError):
            finetune(made.server, REVIEWS, None, **options)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="at most 64"):
        finetune(made.server, REVIEWS, tmp_path / "a", options=TrainingOptions(max_seq_length=65))
    with pytest.raises(ParameterError):
        TrainingOptions(learning_rate=float("nan"))
    with pytest.raises(UnpairedFolders):
        finetune(made.client, REVIEWS, tmp_path / "a", client_dir=made.server)
    other = convert(tmp_path / "plain", tmp_path / "other")
    with pytest.raises(UnpairedFolders):
        finetune(made.server, REVIEWS, tmp_path / "a", client_dir=other.client)
    (made.server / "model.safetensors").write_bytes(b"x")
    with pytest.raises(FileFormatError, match="not those of the manifest"):
        finetune(made.server, REVIEWS, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_calibration_puts_recovery_next_to_utility(tmp_path: Path) -> None:
    plain = save(tmp_path / "plain", *build("roberta", "Model"))
    rows = calibrate(plain, REVIEWS, (0.0, 2.0), options=replace(FAST, epochs=3))
    assert [row.noise for row in rows] == [None, 0.0, 2.0] and rows[0].recovery is None
    assert rows[0].metrics["accuracy"] == rows[1].metrics["accuracy"], "without noise it is the same function with the same head"
    assert rows[1].recovery is not None and rows[2].recovery is not None
    assert rows[1].recovery.sorted_row > rows[2].recovery.sorted_row
    with pytest.raises(ParameterError):
        calibrate(plain, REVIEWS, (-1.0,))


def test_command_line(tmp_path: Path) -> None:
    run = CliRunner()
    plain = str(save(tmp_path / "plain", *build("bert", "Model")))
    keyed, tuned, data = tmp_path / "keyed", tmp_path / "tuned", tmp_path / "data.csv"
    data.write_text("text,label\n" + "".join(f"{one.text},{one.label}\n" for one in TEXTS))
    made = run.invoke(app, ["convert", "--scheme", "sentinel", "--model_name_or_path", plain, "--destination_dir", str(keyed)])
    assert made.exit_code == 0, made.output
    common = ["train", "--scheme", "sentinel", "--model_name_or_path", str(keyed), "--dataset_name", str(data), "--json"]
    short = ["--num_train_epochs", "1", "--max_seq_length", "12", "--learning_rate", "1e-3"]
    more, key = ["--do_train", "--do_eval", "--output_dir", str(tuned)], str(tmp_path / "keyed-client" / "key.json")
    found = run.invoke(app, [*common, *short, *more, "--max_train_samples", "8", "--encryption_key", key])
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["ok"] and told["guarantee"] == "heuristic" and told["train_examples"] == 8 and told["server"] == str(tuned)
    assert 0 <= told["metrics"]["f1"] <= 1
    for wrong, text in (
        ([], "nothing to do"),
        (["--do_train"], "nowhere to write"),
        (["--do_eval", "--task_name", "qa"], "unknown"),
        (["--calibrate", "x"], "no list"),
        (["--calibrate", "0", "--do_train"], "does not go"),
        (["--do_eval", "--scheme", "equivariant"], "not fine-tuned"),
    ):
        refused = run.invoke(app, [*common, *wrong])
        assert refused.exit_code == 2 and text in json.loads(refused.stdout)["what"], refused.output
    table = run.invoke(app, ["train", "--model_name_or_path", plain, "--dataset_name", str(data), "--calibrate", "0.5", *short])
    assert table.exit_code == 0 and "aligned" in table.output and "recovers the tokens" in table.output
