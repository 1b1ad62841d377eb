"""What an estimate is made of: amounts, each with its price, and the term that comes of them."""

from dataclasses import dataclass
from typing import NamedTuple

from .prices import Price


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of an estimate: `count` is of the whole measurement, energies are per token, None without a price."""

    name: str
    count: int
    low_pj: float | None
    central_pj: float | None
    high_pj: float | None
    priced: bool
    note: str
    source: str = ""
    """where the price is from: a table, a figure, a page of what the profile cites"""


class Amount(NamedTuple):
    """How many operations or bits of a whole measurement are charged, from the most to the least favourable reading."""

    low: int
    central: int
    high: int


@dataclass(frozen=True)
class Charge:
    """What a term is made of: amounts, each with its price."""

    name: str
    count: int
    parts: tuple[tuple[Amount, Price | None], ...]
    note: str = ""

    @property
    def occurs(self) -> bool:
        return any(amount.high for amount, _ in self.parts)

    def term(self, tokens: int) -> Term:
        priced = [(amount, price) for amount, price in self.parts if price is not None]
        if len(priced) < len(self.parts):
            return unpriced(self.name, self.count, self.note)
        return Term(
            name=self.name,
            count=self.count,
            low_pj=sum(amount.low * price.low_pj for amount, price in priced) / tokens,
            central_pj=sum(amount.central * price.central_pj for amount, price in priced) / tokens,
            high_pj=sum(amount.high * price.high_pj for amount, price in priced) / tokens,
            priced=True,
            note=join(*dict.fromkeys(price.note for _, price in priced), self.note),
            source=join(*dict.fromkeys(price.source for _, price in priced)),
        )


def unpriced(name: str, count: int, note: str) -> Term:
    return Term(name=name, count=count, low_pj=None, central_pj=None, high_pj=None, priced=False, note=note)


def exactly(amount: int) -> Amount:
    return Amount(amount, amount, amount)


def join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
