"""Attack your own keyed model before somebody else does: MiniLM, converted, read back from its weights and from its traffic.

The audit prints who is stopped and who is not. Nothing here is secret: the open model and the reviews are public.

    python examples/audit_obfuscation.py
    python examples/audit_obfuscation.py --volume 20000
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from privtensors.audit.obfuscation import (
    Decipherment,
    FrequencyRank,
    Probe,
    RowMatching,
    Signature,
    UnitMatching,
    View,
    encode_with,
    load_open,
    material,
    tables_of,
    target_of_folders,
)
from privtensors.obfuscation.convert import convert
from privtensors.testing.assets import minilm_path, movie_reviews, split_reviews


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", type=int, default=5_000, help="tokens that are sent under one key")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        client, server = Path(folder) / "client", Path(folder) / "server"
        convert(minilm_path(), client=client, server=server)
        model, tokenizer = load_open(minilm_path())
        target = target_of_folders(client, server, model, tokenizer)

    reviews = split_reviews(movie_reviews()).train
    text = material((one.text for one in reviews), encode_with(tokenizer), options.volume, corpus=20 * options.volume)
    sent = target.keyed[text.victim]

    # Who holds the weights: rows as they are say nothing, sorted ones all.
    weights = View(len(target.plain), public=tables_of(model), server=target.tables)
    probe = Probe.sampled(target.plain, sent[:500], 300)
    for attack in (RowMatching(Signature.ROW), RowMatching(Signature.SORTED), UnitMatching()):
        found = probe.score(attack.recover(weights, probe.ids))
        print(f"server  {attack.name:22} {found.tokens:7.1%} of the vocabulary, {found.running:7.1%} of running text")

    # Who reads the traffic alone.
    traffic = View(len(target.plain), stream=sent, corpus=text.corpus)
    probe = Probe.of_stream(target.plain, sent)
    for reader in (FrequencyRank(), Decipherment()):
        found = probe.score(reader.recover(traffic, probe.ids))
        print(f"reader  {reader.name:22} {found.tokens:7.1%} of the ids seen,   {found.running:7.1%} of running text")


if __name__ == "__main__":
    main()
