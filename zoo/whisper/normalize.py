"""Text as it is compared: without case, punctuation and ways of spelling, so that word errors are errors of hearing.

The rules are those of openai/whisper's EnglishTextNormalizer and BasicTextNormalizer (Radford et al. 2022, appendix C),
with their oddities ("ninth" stays, "a point hundred" loses its point), since published error rates are counted by them.
British spellings become American ones by the table that checkpoints bring as normalizer.json.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

from zoo.hub.files import read_json

FILE = "normalizer.json"
LETTERS = {"œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE", "ß": "ss", "ẞ": "SS", "đ": "d", "Đ": "D",
           "ð": "d", "Ð": "D", "þ": "th", "Þ": "th", "ł": "l", "Ł": "L"}  # fmt: skip
"""Those that Unicode does not take apart."""


def plain(text: str, keep: str = "") -> str:
    """Marks, symbols and punctuation become spaces, but for those of `keep`; accents are dropped."""

    def replaced(character: str) -> str:
        if character in keep:
            return character
        if character in LETTERS:
            return LETTERS[character]
        category = unicodedata.category(character)
        return "" if category == "Mn" else " " if category[0] in "MSP" else character

    return "".join(map(replaced, unicodedata.normalize("NFKD", text)))


def spoken(text: str) -> str:
    """In lower case, without what is in brackets: [laughs], (applause)."""
    text = re.sub(r"[<\[][^>\]]*[>\]]", "", text.lower())
    return re.sub(r"\(([^)]+?)\)", "", text)


class BasicTextNormalizer:
    """For any language: lower case, symbols as spaces; accents stay, unless `remove_diacritics`."""

    def __init__(self, remove_diacritics: bool = False):
        self.remove_diacritics = remove_diacritics

    def __call__(self, text: str) -> str:
        text = spoken(text)
        if self.remove_diacritics:
            text = plain(text)
        else:
            each = unicodedata.normalize("NFKC", text)
            text = "".join(" " if unicodedata.category(character)[0] in "MSP" else character for character in each)
        return re.sub(r"\s+", " ", text.lower())


class EnglishTextNormalizer:
    """For English: contractions and titles in full, numbers and sums of money in digits, American spelling."""

    def __init__(self, spelling: Mapping[str, str] | None = None):
        """spelling: British word -> American word."""
        self.spelling = dict(spelling or {})

    def __call__(self, text: str) -> str:
        text = re.sub(r"\b(hmm|mm|mhm|mmm|uh|um)\b", "", spoken(text))
        text = re.sub(r"\s+'", "'", text)
        for pattern, replacement in CONTRACTIONS:
            text = pattern.sub(replacement, text)
        text = re.sub(r"(\d),(\d)", r"\1\2", text)
        text = re.sub(r"\.([^0-9]|$)", r" \1", text)
        text = numbers(plain(text, keep=".%$¢€£"))
        text = " ".join(self.spelling.get(word, word) for word in text.split())
        text = re.sub(r"[.$¢€£]([^0-9])", r" \1", text)  # signs that belong to no number
        text = re.sub(r"([^0-9])%", r"\1 ", text)
        return re.sub(r"\s+", " ", text)

    @classmethod
    def beside(cls, directory: Path | None) -> EnglishTextNormalizer:
        """With the spelling table of a checkpoint's directory, where it has one."""
        path = None if directory is None else directory / FILE
        return cls(read_json(path) if path is not None and path.is_file() else None)


_WHOLE = {
    "won't": "will not", "can't": "can not", "let's": "let us", "ain't": "aint", "y'all": "you all",
    "wanna": "want to", "gotta": "got to", "gonna": "going to", "i'ma": "i am going to", "imma": "i am going to",
    "woulda": "would have", "coulda": "could have", "shoulda": "should have", "ma'am": "madam",
    "mr": "mister ", "mrs": "missus ", "st": "saint ", "dr": "doctor ", "prof": "professor ", "capt": "captain ",
    "gov": "governor ", "ald": "alderman ", "gen": "general ", "sen": "senator ", "rep": "representative ",
    "pres": "president ", "rev": "reverend ", "hon": "honorable ", "asst": "assistant ", "assoc": "associate ",
    "lt": "lieutenant ", "col": "colonel ", "jr": "junior ", "sr": "senior ", "esq": "esquire ",
}  # fmt: skip
_ENDINGS = {
    "'d been": " had been", "'s been": " has been", "'d gone": " had gone", "'s gone": " has gone",
    "'d done": " had done", "'s got": " has got", "n't": " not", "'re": " are", "'s": " is", "'d": " would",
    "'ll": " will", "'t": " not", "'ve": " have", "'m": " am",
}  # fmt: skip
CONTRACTIONS = [
    *((re.compile(rf"\b{short}\b"), long) for short, long in _WHOLE.items()),
    *((re.compile(rf"{short}\b"), long) for short, long in _ENDINGS.items()),
]
"""In this order."""

# --- numbers ----------------------------------------------------------------------------------------------------------

ZEROS = {"o", "oh", "zero"}
ONES = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17,
    "eighteen": 18, "nineteen": 19,
}  # fmt: skip
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
MULTIPLIERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
               "quadrillion": 10**15, "quintillion": 10**18, "sextillion": 10**21, "septillion": 10**24,
               "octillion": 10**27, "nonillion": 10**30, "decillion": 10**33}  # fmt: skip
DECIMALS = {*ONES, *TENS, *ZEROS}

SUFFIXED = {
    "sixes" if name == "six" else name + "s": (name, "s") for name in (*ONES, *MULTIPLIERS)
} | {name.replace("y", "ies"): (name, "s") for name in TENS}  # fmt: skip
SUFFIXED |= {name.replace("y", "ieth"): (name, "th") for name in TENS}
SUFFIXED |= {name + ("h" if name.endswith("t") else "th"): (name, "th") for name in (*list(ONES)[3:], *MULTIPLIERS)
             if name not in ("five", "twelve")}  # fmt: skip
SUFFIXED |= {"zeroth": ("", "th"), "first": ("one", "st"), "second": ("two", "nd"), "third": ("three", "rd"),
             "fifth": ("five", "th"), "twelfth": ("twelve", "th")}  # fmt: skip
"""Plural or ordinal -> (number's name, what is written behind its digits)."""

SIGNS = {"minus": "-", "negative": "-", "plus": "+", "positive": "+"}
"""Said before a number."""
MONEY = {
    "pound": "£",
    "pounds": "£",
    "euro": "€",
    "euros": "€",
    "dollar": "$",
    "dollars": "$",
    "cent": "¢",
    "cents": "¢",
}
"""Said behind a number, and written before it."""
LINKS = {"and", "double", "triple", "point"}
KNOWN = {*DECIMALS, *MULTIPLIERS, *SUFFIXED, *SIGNS, *MONEY, "per", "percent", *LINKS}
_DIGITS = re.compile(r"^\d+(\.\d+)?$")


def numbers(text: str) -> str:
    """Numbers that are said become digits: "two thousand and twenty six" 2026, "one oh one" 101, "five dollars" $5."""
    parts, pieces = re.split(r"\band\s+a\s+half\b", text), []
    for i, part in enumerate(parts):
        if part.strip():
            pieces.append(part)
            if i < len(parts) - 1:
                counted = part.rsplit(maxsplit=2)[-1] in DECIMALS | MULTIPLIERS.keys()
                pieces.append("point five" if counted else "and a half")
    text = re.sub(r"([a-z])([0-9])", r"\1 \2", " ".join(pieces))
    text = re.sub(r"([0-9])([a-z])", r"\1 \2", text)
    text = re.sub(r"([0-9])\s+(st|nd|rd|th|s)\b", r"\1\2", text)
    text = " ".join(_Reader(text.split()).read())
    # $2 and ¢7 are $2.07; $0.07 is ¢7; and a 1 alone is a word rather than a number
    text = re.sub(r"([€£$])([0-9]+) (?:and )?¢([0-9]{1,2})\b", lambda m: f"{m[1]}{m[2]}.{int(m[3]):02d}", text)
    text = re.sub(r"[€£$]0.([0-9]{1,2})\b", lambda m: f"¢{int(m[1])}", text)
    return re.sub(r"\b1(s?)\b", r"one\1", text)


class _Reader:
    """Reads words one by one. `value` is the number so far: a count that can grow, or digits (str) that were said one
    after another; `sign` is what will be written before it."""

    def __init__(self, words: list[str]):
        self.words = words
        self.value: int | str | None = None
        self.sign = ""

    def read(self) -> Iterator[str]:
        skip = False
        for i, word in enumerate(self.words):
            if skip:
                skip = False
                continue
            before = self.words[i - 1] if i else ""
            after = self.words[i + 1] if i + 1 < len(self.words) else ""
            counted_after = after in KNOWN or bool(_DIGITS.match(after))
            signed = word[0] in "-+£€$¢"
            digits = word[1:] if signed else word
            if _DIGITS.match(digits):
                yield from self._number(word, digits, word[0] if signed else "")
            elif word not in KNOWN or (word in LINKS and not counted_after):
                yield from self._said(word)
            elif word in ZEROS:
                self.value = str(self.value or "") + "0"
            elif word in ONES or word in TENS:
                self.value = self._joined(word, before)
            elif word in MULTIPLIERS:
                yield from self._multiplied(MULTIPLIERS[word])
            elif word in SUFFIXED:
                name, suffix = SUFFIXED[word]
                if name in MULTIPLIERS:
                    yield from self._multiplied(MULTIPLIERS[name])
                    yield self._out(f"{self.value}{suffix}")
                else:
                    yield self._out(f"{self._joined(name, before)}{suffix}")
            elif word in SIGNS:
                if self.value is not None:
                    yield self._out(self.value)
                if counted_after:
                    self.sign = SIGNS[word]
                else:
                    yield self._out(word)
            elif word in MONEY:
                if self.value is not None:
                    self.sign = MONEY[word]
                    yield self._out(self.value)
                else:
                    yield self._out(word)
            elif self.value is not None and (word == "percent" or (word == "per" and after == "cent")):
                yield self._out(f"{self.value}%")
                skip = word == "per"
            elif word in ("per", "percent"):
                yield from self._said(word)
            elif word == "and":
                if before not in MULTIPLIERS:
                    yield from self._said(word)
            elif word == "point":
                if after in DECIMALS or _DIGITS.match(after):
                    self.value = str(self.value or "") + "."
            elif after in ONES or after in ZEROS:
                self.value = str(self.value or "") + str(ONES.get(after, 0)) * (2 if word == "double" else 3)
                skip = True
            else:
                yield from self._said(word)
        if self.value is not None:
            yield self._out(self.value)

    def _out(self, result: int | str) -> str:
        written = f"{self.sign}{result}"
        self.value, self.sign = None, ""
        return written

    def _said(self, word: str) -> Iterator[str]:
        """A word that ends a number."""
        if self.value is not None:
            yield self._out(self.value)
        yield self._out(word)

    def _number(self, word: str, digits: str, sign: str) -> Iterator[str]:
        if isinstance(self.value, str) and self.value.endswith("."):
            self.value += word
            return
        if self.value is not None:
            yield self._out(self.value)
        self.sign = sign or self.sign
        exact = Fraction(digits)
        self.value = exact.numerator if exact.denominator == 1 else digits

    def _joined(self, name: str, before: str) -> int | str:
        """The number with one more word up to ninety: added where there is room for it, else its digits behind."""
        number, value = ONES.get(name) or TENS.get(name) or 0, self.value
        if value is None:
            return number
        if name not in TENS and before in TENS and number < 10 and isinstance(value, str):
            return value[:-1] + str(number)
        room = 10 if number < 10 else 100
        if isinstance(value, str) or (name not in TENS and before in ONES) or value % room:
            return f"{value}{number}"
        return value + number

    def _multiplied(self, by: int) -> Iterator[str]:
        if isinstance(self.value, int) and self.value:
            self.value = self.value // 1000 * 1000 + self.value % 1000 * by
            return
        try:
            product = Fraction(1 if self.value is None else self.value) * by
        except ValueError:  # "." alone
            product = Fraction(1, 2)
        if product.denominator == 1:
            self.value = product.numerator
        else:
            yield self._out(self.value or 0)
            self.value = by
