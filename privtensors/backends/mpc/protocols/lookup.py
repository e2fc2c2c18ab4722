"""Rows of a shared table at positions that one party knows: private token ids against a table it does not hold.

Private information retrieval by two servers (Chor, Goldreich, Kushilevitz and Sudan, 1995), the answers shared and not
given (symmetric, as in Gertner, Ishai, Kushilevitz and Malkin, 1998), where one of the two servers is the dealer and
works offline, before any position is known (offline/online: Corrigan-Gibbs and Kogan, 2020; commodity-based: Beaver, 1997).

Once per table W, (V, d): its mask M is known to the server and the dealer, the client gets W + M. So the client holds
share (W + M)[id] of the row it wants, and what remains is to share M[id] without telling the server which row that is.
Per position, with b·M the sum of the rows that a string b of V bits selects:

1. offline: the client and the dealer draw a set S (V bits) and a bit r, the server and the dealer a mask m; the dealer
   shares g = (-1)^r (S·M + m).
2. client to server: q = S with the bit at id flipped, and r + S[id]; both are uniform and independent of id.
3. server to client: z = q·M + m. It differs from S·M + m by M[id] or by -M[id], and the client knows which: by
   s = (-1)^S[id]. So M[id] = s z - s (S·M + m) = s z - (-1)^(r + S[id]) g: shared.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from privtensors.backends.mpc.protocols.arithmetic import normal
from privtensors.backends.mpc.protocols.products import matmul
from privtensors.backends.mpc.runtime import Open, Protocol, Runtime
from privtensors.backends.mpc.shares import WORD, Shares, Table

ASKING: Final = 0  # the party that knows the positions: the client
ANSWERING: Final = 1  # the party whose share of the table is its mask: the server
_BLOCK: Final = 64  # positions whose selection bits are unpacked at a time


def row_of(rt: Runtime, party: int) -> int | None:
    """Row of ``party`` among the parties held here, or None."""
    return rt.channel.parties.index(party) if party in rt.channel.parties else None


def packed_bits(count: int) -> int:
    """Bytes of a string of ``count`` bits."""
    return -(-count // 8)


def open_table(rt: Runtime, x: Shares) -> Protocol[Table]:
    """Mask a shared table for lookups: 1 round, 8 bytes per entry from the answering to the asking party; once per version.

    Args:
        x: ``(V, d)``, at the backend's fractional bits in the full ring; lifted where it is not.
    """
    if x.table is not None:
        return x.table
    words = (yield from normal(rt, x)).data
    mask = rt.dealer.mask_of(ANSWERING, x.shape)
    (masked,) = yield [Open(words + mask.shares, WORD, receiver=ASKING)]
    rows = -mask.shares
    asking = row_of(rt, ASKING)
    if asking is not None:
        rows[asking] = masked
    x.table = Table(rows, mask.hidden)
    return x.table


def lookup(rt: Runtime, table: Table, positions: Tensor) -> Protocol[Tensor]:
    """Shares of ``W[positions]``; 2 rounds, V bits and d words per position in all.

    Guarantee: computational. The answering party sees uniform bits, whatever the positions, equal ones included; the
    asking party learns nothing but its shares; the dealer learns how many positions there were. Dealer and answering
    party together learn the positions, dealer and asking party the table.

    Args:
        table: From :func:`open_table`.
        positions: int64, ``(parties held here, n)``, each 0 to V - 1: the asking party's row holds them, the other's is not read.

    Returns:
        int64, ``(parties held here, n, d)``, in the full ring.
    """
    count, (size, width) = positions.shape[1], table.rows.shape[1:]
    asking, answering = row_of(rt, ASKING), row_of(rt, ANSWERING)
    chosen = rt.dealer.mask_of(ASKING, (count, packed_bits(size)), torch.int8)
    flip = rt.dealer.mask_of(ASKING, (count,), torch.int8)
    pad = rt.dealer.mask_of(ANSWERING, (count, width))

    def hint(chosen: Tensor, flip: Tensor, pad: Tensor, mask: Tensor) -> Tensor:
        return _signed(selected_sums(chosen, mask) + pad, flip)

    hints = rt.dealer.share(hint, chosen.hidden, flip.hidden, pad.hidden, table.mask, shape=(count, width))

    query, sign = chosen.shares.clone(), flip.shares.clone()
    if asking is not None:
        byte, bit = (positions[asking] >> 3).unsqueeze(1), (positions[asking] & 7).unsqueeze(1)
        there = (query[asking].gather(1, byte) >> bit.to(torch.int8)) & 1  # S[id], only for the client's eyes
        query[asking].scatter_(1, byte, query[asking].gather(1, byte) ^ (1 << bit).to(torch.int8))
        sign[asking] ^= there.squeeze(1)
    query, sign = yield [Open(query, 8, xor=True, receiver=ANSWERING), Open(sign, 1, xor=True, receiver=ANSWERING)]

    answer = torch.zeros_like(pad.shares)
    if answering is not None:
        answer[answering] = pad.shares[answering] - selected_sums(query, table.rows[answering])
    (answer,) = yield [Open(answer, WORD, receiver=ASKING)]

    # M[id] is subtracted from W[id] + M[id].
    out = _signed(hints, sign)
    if asking is not None:
        out[asking] -= _signed(answer, there.squeeze(1))
        out[asking] += table.rows[asking][positions[asking]]
    return out


def _signed(words: Tensor, bits: Tensor) -> Tensor:
    """``words`` (…, n, d), negated where the low bit of ``bits`` (n,) is set."""
    return words * (1 - 2 * (bits.to(torch.int64) & 1)).unsqueeze(-1)


def selected_sums(packed: Tensor, table: Tensor) -> Tensor:
    """Sums of the rows of ``table`` that each bit string selects, modulo 2^64.

    Args:
        packed: int8, (n, bytes): bit k of byte j selects row 8 j + k; bits past the last row count for nothing.
        table: int64, (V, d).

    Returns:
        int64, (n, d).
    """
    size = len(table)
    out = torch.empty(len(packed), table.shape[1], dtype=torch.int64)
    shifts = torch.arange(8, dtype=torch.int8)
    for start in range(0, len(packed), _BLOCK):
        block = packed[start : start + _BLOCK]
        bits = ((block.unsqueeze(-1) >> shifts) & 1).reshape(len(block), -1)[:, :size]
        out[start : start + _BLOCK] = matmul(bits.to(torch.int64), table)
    return out
