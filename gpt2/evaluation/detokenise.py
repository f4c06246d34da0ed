"""De-tokenisers with their inverses: tokenised test sets as ordinary text, and back again, exactly.

The paper scores its sets through "invertible de-tokenizers" that were never published; these are ours. Each is a small
set of rules (`RULES`): which words lose the space before or after them, and how some are written. The inverse is one
function of a word as it is written, `split`. Text goes back exactly because nothing is joined that `split` would not
take apart again, and because the few words that `split` would take apart though they were whole (abbreviations such as
"Jr.") are listed in `exceptions`, which `fitted` collects from the text itself. What a text's loss is divided by is
not this file's business.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

_CLITICS = "n't|'s|'re|'ve|'m|'ll|'d"


@dataclass(frozen=True, slots=True)
class Rules:
    """How one set was tokenised. Patterns are regular expressions that match a whole word of the tokenised text.

    before: words that stood at the end of the word before them ("," in "however ,").
    after: words that stood at the beginning of the next one ("(" in "( 2000 )").
    quotes: (opening, closing, as written); where opening and closing are the same word they take turns in a line.
    inside: words that stood between two others without spaces, and how they are written ("@-@" is "-").
    spelt: words that stood for a sign, and the sign ("-LRB-" is "(").
    headings: whether runs of "=" stood together.
    """

    name: str
    before: str
    after: str = r"(?!)"
    quotes: tuple[tuple[str, str, str], ...] = ()
    inside: tuple[tuple[str, str], ...] = ()
    spelt: tuple[tuple[str, str], ...] = ()
    headings: bool = False


_PUNCTUATION = r"[.,:;!?%)\]}]|\.\.\."
RULES: Mapping[str, Rules] = MappingProxyType(
    {
        "wikitext": Rules(
            "wikitext",
            before=_PUNCTUATION,
            after=r"[(\[{$£€]",
            quotes=(('"', '"', '"'),),
            inside=(("@-@", "-"), ("@,@", ","), ("@.@", ".")),
            headings=True,
        ),
        # Mikolov's text has no punctuation. <unk> and N stay as they are: whatever stood for them would be a guess.
        "ptb": Rules("ptb", before=r"(?!)", after=r"[a-z]*\$|#"),
        "1bw": Rules("1bw", before=_PUNCTUATION, after=r"[(\[{$£€#]", quotes=(('"', '"', '"'),)),
        "cbt": Rules(
            "cbt",
            before=_PUNCTUATION,
            after=r"[(\[{$£]",
            quotes=(("``", "''", '"'), ("`", "'", "'")),
            spelt=(("-LRB-", "("), ("-RRB-", ")"), ("-LSB-", "["), ("-RSB-", "]")),
        ),
    }
)
"""By set; text8 has none, since its letters and spaces were never tokenised, nor has enwik8."""


@dataclass(frozen=True)
class Detokeniser:
    """Tokenised text to ordinary text (`forward`) and back (`inverse`).

    `inverse(forward(text)) == text` for every text of the lines that it was `fitted` to, and for any text whose words
    are whole to `split` and whose lines have the same `margin` (a space at both ends of every line, or nothing).
    """

    rules: Rules
    exceptions: frozenset[str] = frozenset()
    margin: str = ""
    _parts: dict[str, list[str]] = field(default_factory=dict, compare=False, repr=False)

    def fitted(self, text: str) -> "Detokeniser":
        """This one, with the exceptions and the margin of a text: with them it inverts that text exactly."""
        lines = text.split("\n")
        lines = lines[:-1] if lines[-1] == "" else lines
        # A margin alone behind the last line's end would be written as nothing, as if no line stood there.
        has_margin = bool(lines) and not (text.endswith(" ") and lines[-1] == " ")
        has_margin = has_margin and all(line == " " or (len(line) > 2 and line[0] == line[-1] == " ") for line in lines)
        bare = replace(self, exceptions=frozenset(), margin=" " if has_margin else "", _parts={})
        words = {word for line in lines for word in bare._inner(line).split(" ")}
        return replace(bare, exceptions=frozenset(w for w in words if bare.split(w) != [w]), _parts={})

    def forward(self, text: str) -> str:
        """Tokenised text as ordinary text, line by line."""
        return "\n".join(self._forward(line) for line in text.split("\n"))

    def inverse(self, text: str) -> str:
        """Ordinary text that `forward` made, tokenised as it was."""
        lines = text.split("\n")
        back = [self._inverse(line) for line in lines]
        if lines[-1] == "":
            back[-1] = ""  # what follows the last line's end is no line
        return "\n".join(back)

    def split(self, written: str) -> list[str]:
        """A run of characters without spaces, as the words of the tokenised text that it is made of."""
        known = self._parts.get(written)
        if known is None:
            known = self._parts[written] = self._split(written)
        return known

    def _inner(self, line: str) -> str:
        if not self.margin:
            return line
        return "" if line == self.margin else line.removeprefix(self.margin).removesuffix(self.margin)

    def _forward(self, line: str) -> str:
        words = self._inner(line).split(" ")
        joined = self._joined(words)
        written: list[str] = []
        start = 0
        for end in range(1, len(words) + 1):
            if end < len(words) and joined[end]:
                continue
            run = words[start:end]
            together = "".join(self._written(word) for word in run)
            # One word in a run was not made by joining, and is only written otherwise if that can be undone.
            written += [together] if self.split(together) == run else run
            start = end
        return " ".join(written)

    def _inverse(self, line: str) -> str:
        inner = " ".join(word for run in line.split(" ") for word in self.split(run))
        return f"{self.margin}{inner}{self.margin}" if inner else self.margin

    def _written(self, word: str) -> str:
        for opening, closing, shown in self.rules.quotes:
            if word in (opening, closing):
                return shown
        return dict((*self.rules.inside, *self.rules.spelt)).get(word, word)

    def _joined(self, words: list[str]) -> list[bool]:
        """For each word, whether it is to be joined to the one before it."""
        rules, joined, turn = self.rules, [False] * (len(words) + 1), 0
        openings = {opening for opening, closing, _ in rules.quotes if opening != closing}
        closings = {closing for opening, closing, _ in rules.quotes if opening != closing}
        both = {opening for opening, closing, _ in rules.quotes if opening == closing}
        inside = dict(rules.inside)
        left_over = {word: words.count(word) % 2 for word in both}
        for place, word in enumerate(words):
            written = self._written(word)
            if word in both:
                # The last of an odd number has no partner, and stays alone.
                if not (left_over[word] and word not in words[place + 1 :]):
                    joined[place if turn % 2 else place + 1] = True
                    turn += 1
            elif word in inside:
                joined[place] = joined[place + 1] = True
            elif word in openings or self._after.fullmatch(written):
                joined[place + 1] = True
            elif word in closings or self._before.fullmatch(written) or self._clitic.fullmatch(word):
                joined[place] = True
            elif word == "'":
                joined[place] = place > 0 and words[place - 1][-1:] in ("s", "S", "x", "z")
            elif rules.headings and word == "=":
                joined[place] = place > 0 and words[place - 1] == "="
        joined[0] = False
        return joined[:-1]

    def _split(self, written: str) -> list[str]:
        rules = self.rules
        if rules.headings and len(written) > 1 and set(written) == {"="} and written not in self.exceptions:
            return list(written)
        names = {sign: word for word, sign in rules.spelt}
        opening = {shown: name for name, _, shown in rules.quotes}
        closing = {shown: name for _, name, shown in rules.quotes}
        head: list[str] = []
        tail: list[str] = []
        core = written
        while core and core not in self.exceptions and (sign := self._opening.match(core)):
            head.append(opening.get(sign[0]) or names.get(sign[0], sign[0]))
            core = core[sign.end() :]
        while core and core not in self.exceptions:
            if sign := self._closing.search(core):
                tail.append(closing.get(sign[0]) or names.get(sign[0], sign[0]))
            elif not (sign := self._ending.search(core)):
                break
            else:
                tail.append(sign[0])
            core = core[: sign.start()]
        middle = [core] if core in self.exceptions else self._divided(core)
        if not core and (head or tail):
            middle = []  # nothing but signs
        return [*head, *middle, *reversed(tail)]

    def _divided(self, core: str) -> list[str]:
        """A word at the signs that stood inside it."""
        if not self.rules.inside:
            return [core]
        names = {sign: word for word, sign in self.rules.inside}
        parts = re.split(r"((?<=[^\W_])-(?=[^\W_])|(?<=\d)[,.](?=\d))", core)
        return [names[part] if index % 2 and part in names else part for index, part in enumerate(parts)]

    @cached_property
    def _before(self) -> re.Pattern[str]:
        return re.compile(self.rules.before)

    @cached_property
    def _after(self) -> re.Pattern[str]:
        return re.compile(self.rules.after)

    @cached_property
    def _clitic(self) -> re.Pattern[str]:
        return re.compile(_CLITICS, re.IGNORECASE)

    @cached_property
    def _opening(self) -> re.Pattern[str]:
        shown = "|".join(re.escape(shown) for _, _, shown in self.rules.quotes) or "(?!)"
        return re.compile(f"(?:{shown})|(?:{self.rules.after})")

    @cached_property
    def _closing(self) -> re.Pattern[str]:
        shown = "|".join(re.escape(shown) for _, _, shown in self.rules.quotes) or "(?!)"
        return re.compile(rf"(?:(?:{shown})|\.\.\.|(?:{self.rules.before}))\Z")

    @cached_property
    def _ending(self) -> re.Pattern[str]:
        """What is taken off the end of a word that no closing sign ends: 's, n't and the like, or a lone apostrophe."""
        return re.compile(rf"(?<=.)(?:(?:{_CLITICS})|(?<=[sSxz])')\Z", re.IGNORECASE)


def detokeniser(name: str) -> Detokeniser:
    """The de-tokeniser of a set by its name in `RULES`, not yet fitted to any text."""
    return Detokeniser(RULES[name])


def exact_share(tool: Detokeniser, text: str) -> float:
    """The share of a text's lines that come back exactly; 1 for a tool that was `fitted` to it."""
    lines, back = text.split("\n"), tool.inverse(tool.forward(text)).split("\n")
    return sum(line == other for line, other in zip(lines, back, strict=True)) / len(lines)
