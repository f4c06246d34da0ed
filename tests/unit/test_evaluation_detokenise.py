"""De-tokenisers: what they write, and that it comes back, on made-up text and on the real test files."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt2.evaluation.detokenise import RULES, Detokeniser, detokeniser, exact_share

WIKITEXT = (
    ' He had a guest @-@ starring role in " Teddy \'s Story " ( 2000 ) , which cost $ 1 @,@ 500 @.@ 5 . \n'
    " = = = Career = = = \n \n"
)


def test_wikitext_becomes_ordinary_text_and_comes_back():
    tool = detokeniser("wikitext").fitted(WIKITEXT)
    assert tool.forward(WIKITEXT) == (
        'He had a guest-starring role in "Teddy\'s Story" (2000), which cost $1,500.5.\n=== Career ===\n\n'
    )
    assert tool.inverse(tool.forward(WIKITEXT)) == WIKITEXT


def test_ptb_joins_contractions_and_currency_and_keeps_its_stand_ins():
    text = " but mr. <unk> did n't buy the traders ' shares for c$ N or it 's $ N \n"
    tool = detokeniser("ptb").fitted(text)
    assert tool.forward(text) == "but mr. <unk> didn't buy the traders' shares for c$N or it's $N\n"
    assert tool.inverse(tool.forward(text)) == text


def test_cbt_signs_are_written_as_they_are_printed():
    text = "`` I 'm sorry , '' said Mary -LRB- who was not -RRB- ."
    tool = detokeniser("cbt").fitted(text)
    assert tool.forward(text) == '"I\'m sorry," said Mary (who was not).'
    assert tool.inverse(tool.forward(text)) == text


def test_1bw_keeps_numbers_and_hyphens_that_were_never_split():
    text = 'The 1,000 well-known men said : " No ! "'
    tool = detokeniser("1bw").fitted(text)
    assert tool.forward(text) == 'The 1,000 well-known men said: "No!"'
    assert tool.inverse(tool.forward(text)) == text


def test_an_abbreviation_is_an_exception_and_its_full_stop_stays_apart():
    text = " Sammy Davis Jr. met Ed Jr . \n"
    tool = detokeniser("wikitext").fitted(text)
    assert tool.exceptions == {"Jr."}
    # "Ed Jr ." would become the exception "Jr.", so that stop is not joined.
    assert tool.forward(text) == "Sammy Davis Jr. met Ed Jr .\n"
    assert tool.inverse(tool.forward(text)) == text


def test_without_its_exceptions_a_text_does_not_come_back_and_the_share_says_so():
    text = " one Jr. \n two \n"
    fitted = detokeniser("wikitext").fitted(text)
    bare = Detokeniser(RULES["wikitext"], margin=" ")
    assert exact_share(fitted, text) == 1
    assert exact_share(bare, text) == pytest.approx(2 / 3)


def test_a_quotation_mark_without_a_partner_stays_alone():
    text = ' he said " yes " and " no \n'
    tool = detokeniser("wikitext").fitted(text)
    assert tool.forward(text) == 'he said "yes" and " no\n'


_words = st.one_of(
    st.sampled_from(
        [
            *"=.,:;!?()[]$%'\"-#`",
            "@-@",
            "@,@",
            "@.@",
            "n't",
            "'s",
            "N'T",
            "``",
            "''",
            "-LRB-",
            "-RRB-",
            "<unk>",
            "N",
            "...",
        ]
    ),
    st.text(alphabet="aZs5'.,-\"=()$@`é", max_size=6).filter(lambda word: "\n" not in word),
)
_texts = st.lists(st.lists(_words, max_size=8).map(" ".join), max_size=5).map("\n".join)


@pytest.mark.parametrize("name", RULES)
@given(text=_texts)
@example(text=" ")
@example(text=" a b \n ")
@example(text="== = = a")
@example(text=" a b \n \n")
def test_any_text_comes_back_exactly(name, text):
    tool = detokeniser(name).fitted(text)
    assert tool.inverse(tool.forward(text)) == text


@pytest.mark.parametrize("name", RULES)
@given(lines=st.lists(st.lists(_words.filter(bool), min_size=1, max_size=8).map(" ".join), min_size=1, max_size=4))
def test_any_text_with_margins_comes_back_exactly(name, lines):
    text = "".join(f" {line} \n" for line in lines) + " \n"
    tool = detokeniser(name).fitted(text)
    assert tool.margin == " "
    assert tool.inverse(tool.forward(text)) == text


@pytest.mark.parametrize(
    ("file", "name", "left"),
    [
        ("wikitext2/wiki.test.raw", "wikitext", 0.01),
        ("wikitext2/wiki.test.tokens", "wikitext", 0.02),
        ("wikitext103/wiki.test.tokens", "wikitext", 0.01),
        ("ptb/ptb.test.txt", "ptb", 0.01),
    ],
)
def test_the_real_test_files_come_back_and_their_marks_are_gone(shared, file, name, left):
    text = (shared / "data/eval" / file).read_text(encoding="utf-8")
    tool = detokeniser(name).fitted(text)
    written = tool.forward(text)
    assert tool.inverse(written) == text
    assert len(tool.exceptions) < 150
    # Not by leaving everything as it is: nearly every contraction, comma and full stop has been joined.
    for mark in (" ,", " .", " 's ", " n't "):
        assert written.count(mark) <= left * text.count(mark)
