"""Perplexity: against transformers' strided recipe, training's own evaluation, plain loops; what it is divided by."""

import math

import numpy as np
import pytest
import torch

from gpt2.checkpoint import LanguageModel
from gpt2.errors import BadData, BadOption
from gpt2.evaluation.perplexity import TRANSFORMERS, Document, Protocol, perplexity, token_nats, windows
from gpt2.generation import Engine
from gpt2.tokenizer import Tokenizer
from gpt2.training.data import to_ids
from gpt2.training.evaluate import evaluate
from tests.generation_models import RUNNERS, SHAPE, TEXT, model, network, peer, runner, small_tokenizer
from tests.helpers import tiny_model

LONG = TEXT * 2


@torch.no_grad()
def recipe(made: LanguageModel, text: str, max_length: int, stride: int) -> float:
    """The computation that transformers' documentation describes, on transformers' model and its loss."""
    theirs = peer(made.network)
    ids = torch.tensor([made.tokenizer.encode(text)])
    nats, tokens, reached = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + max_length, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : end - begin - (end - reached)] = -100
        weight = int((labels != -100).sum()) - 1
        nats += float(theirs(ids[:, begin:end], labels=labels).loss) * weight
        tokens += weight
        reached = end
        if end == ids.shape[1]:
            break
    return math.exp(nats / tokens)


@pytest.mark.parametrize(("window", "stride"), [(None, None), (64, 32), (64, 64), (64, 7), (40, 20), (2, 1)])
def test_transformers_recipe_gives_what_transformers_gives(window: int | None, stride: int | None) -> None:
    made = model(small_tokenizer(), n_positions=64)
    text = LONG[:301]
    protocol = Protocol(window, stride, end_of_text_first=False, transformers=True)
    found = perplexity(made, [Document("text", text)], protocol)
    expected = recipe(made, text, window or 64, stride or 32)
    assert found.total.perplexity == pytest.approx(expected, rel=1e-5)
    assert "transformers' strided recipe" in found.protocol
    # It differs from the mean over tokens, or this would be about nothing.
    if stride == 7:
        plainly = perplexity(made, [Document("text", text)], Protocol(63, 7, end_of_text_first=False))
        assert plainly.total.nats == pytest.approx(found.total.nats, rel=1e-6)
        assert abs(plainly.total.perplexity / expected - 1) > 1e-4
    assert Protocol(end_of_text_first=False, transformers=True) == TRANSFORMERS


@pytest.mark.parametrize("stride", [1, 5, 16, 32])
@pytest.mark.parametrize("length", [0, 1, 2, 17, 32, 33, 34, 65, 200])
def test_windows_score_every_token_once_with_what_stands_before(length: int, stride: int) -> None:
    ids = np.arange(length)
    scored: list[int] = []
    for item in windows(ids, 32, stride):
        assert len(item.context) + len(item.continuation) - 1 <= 32
        assert [*item.context, *item.continuation] == list(
            range(item.context[0], item.context[0] + len(item.context) + len(item.continuation))
        )
        assert item.context[0] == 0 or len(item.context) == 32 - stride + 1
        scored += item.continuation
    assert scored == list(range(1, length))


@pytest.mark.parametrize("stride", [None, 3, 16])
def test_it_is_what_training_says_of_the_same_text(stride: int | None) -> None:
    made = tiny_model(window=16)
    ids = to_ids([LONG[:300]], made.tokenizer)
    theirs = evaluate(made.network, ids, made.tokenizer.end_of_text, 1, stride=stride or 8)
    found = perplexity(made, [Document("text", LONG[:300])], Protocol(stride=stride))
    assert found.total.nats_per_token == pytest.approx(theirs.nats_per_token, rel=1e-5)
    assert found.total.tokens == theirs.tokens
    [nats] = token_nats(made, [ids], Protocol(stride=stride))
    assert nats.sum() == pytest.approx(found.total.nats)


@torch.no_grad()
def test_what_the_loss_is_divided_by() -> None:
    made = model(small_tokenizer(), n_positions=512)
    text = "A naïve  café,\n日本語 🙂"
    ids = made.tokenizer.encode(text)
    logits = made.network(torch.tensor([[made.tokenizer.end_of_text, *ids]]))[0].double()
    nats = -float(logits.log_softmax(-1)[range(len(ids)), ids].sum())
    whole = perplexity(made, [Document("text", text)]).total
    assert (whole.tokens, whole.words, whole.bytes, whole.characters) == (len(ids), 5, len(text.encode()), len(text))
    assert whole.nats == pytest.approx(nats, rel=1e-6)
    assert whole.perplexity == pytest.approx(math.exp(nats / len(ids)), rel=1e-5)
    assert whole.word_perplexity == pytest.approx(math.exp(nats / 5), rel=1e-5)
    assert whole.bits_per_byte == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-6)
    assert whole.bits_per_character == pytest.approx(nats / math.log(2) / len(text), rel=1e-6)
    # Without end of text the first token is neither scored nor counted.
    rest = perplexity(made, [Document("text", text)], Protocol(end_of_text_first=False)).total
    cut = len(made.tokenizer.token_bytes(ids[0]))
    assert (rest.tokens, rest.words, rest.bytes) == (len(ids) - 1, 4 if cut == 1 else 5, len(text.encode()) - cut)
    assert rest.characters == len(text) - 1


def test_bytes_that_transformers_recipe_does_not_score_are_not_counted() -> None:
    made = tiny_model()
    text = "the cat sat é" * 9
    found = perplexity(made, [Document("text", text)], Protocol(8, 8, end_of_text_first=False, transformers=True)).total
    data = text.encode()
    scored = bytes(byte for place, byte in enumerate(data) if place % 8)
    assert found.tokens == found.bytes == len(scored) < len(data) - 1
    assert found.characters == sum(byte & 0xC0 != 0x80 for byte in scored)
    assert found.bits_per_byte == pytest.approx(found.nats / found.tokens / math.log(2))


def test_a_vocabulary_of_bytes_and_a_first_token_that_is_half_a_character() -> None:
    made = tiny_model()
    found = perplexity(made, [Document("text", "é🙂")], Protocol(end_of_text_first=False)).total
    assert (found.tokens, found.bytes, found.characters) == (5, 5, 1)


def test_documents_each_by_itself() -> None:
    made = model(small_tokenizer(), n_positions=64)
    documents = [Document(f"number {number}", TEXT[3 * number : 60 + 9 * number]) for number in range(12)]
    documents.insert(3, Document("empty", ""))
    said: list[tuple[int, int]] = []
    found = perplexity(made, documents, progress=lambda done, of: said.append((done, of)))
    assert [each.name for each in found.documents] == [each.name for each in documents if each.text]
    for document, measure in zip([each for each in documents if each.text], found.documents, strict=True):
        alone = perplexity(made, [document]).total
        assert measure.nats == pytest.approx(alone.nats, rel=1e-5)
        assert (measure.tokens, measure.words, measure.bytes) == (alone.tokens, alone.words, alone.bytes)
    assert found.total.nats == pytest.approx(sum(each.nats for each in found.documents))
    assert found.total.tokens == sum(each.tokens for each in found.documents)
    assert found.units == "documents"
    low, high = found.interval
    assert low < found.total.perplexity < high
    assert said[-1][0] == said[-1][1] >= 12


def test_the_interval_of_one_text_is_over_its_windows_and_of_few_there_is_none() -> None:
    made = model(small_tokenizer(), n_positions=16)
    found = perplexity(made, [Document("text", LONG)])
    assert found.units == "windows"
    low, high = found.interval
    assert low < found.total.perplexity < high
    assert perplexity(made, [Document("text", LONG[:20])]).interval is None


def test_the_hardest_passages_are_where_the_cost_is() -> None:
    made = model(small_tokenizer(), n_positions=64)
    text = LONG[:400]
    found = perplexity(made, [Document("a", text), Document("b", text[100:])], hardest=3)
    assert len(found.hardest) == 3
    assert [each.nats for each in found.hardest] == sorted((each.nats for each in found.hardest), reverse=True)
    for each in found.hardest:
        whole = {"a": text, "b": text[100:]}[each.document]
        assert each.before + each.text + each.behind in whole
        assert each.text
        assert "\ufffd" not in each.before + each.text + each.behind
    # The costliest token of all is in one of them.
    ids = made.tokenizer.encode(text)
    [nats] = token_nats(made, [[made.tokenizer.end_of_text, *ids]])
    assert found.hardest[0].nats >= nats.max() - 1e-3
    mean = found.total.nats_per_token
    assert all(each.nats > 1.5 * mean for each in found.hardest)
    assert perplexity(made, [Document("a", text)], hardest=0).hardest == []


@pytest.mark.parametrize(("name", "dtype"), RUNNERS)
def test_every_runner_and_width(name: str, dtype: str) -> None:
    made = model(n_positions=64, **SHAPE)
    same = LanguageModel(made.network, made.tokenizer, dtype=dtype)
    found = perplexity(Engine(same, runner=runner(name, dtype, made)), [Document("text", TEXT[:200])])
    base = perplexity(made, [Document("text", TEXT[:200])])
    exact = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.05}[dtype]
    assert found.total.nats_per_token == pytest.approx(base.total.nats_per_token, rel=exact)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (Protocol(stride=0), "stride is 0; it must be between 1 and the window, 32"),
        (Protocol(stride=33), "stride is 33; it must be between 1 and the window, 32"),
        (Protocol(window=8, stride=9), "stride is 9; it must be between 1 and the window, 8"),
        (Protocol(window=33), "window is 33; it must be between 1 and the model's window, 32"),
        (Protocol(window=0), "window is 0"),
        (Protocol(window=1, transformers=True), "window is 1; it must be between 2"),
    ],
)
def test_windows_that_cannot_be_had(protocol: Protocol, message: str) -> None:
    with pytest.raises(BadOption, match=message):
        perplexity(tiny_model(), [Document("text", "text")], protocol)


@pytest.mark.parametrize("documents", [[], [Document("a", ""), Document("b", "")]])
def test_no_text_is_an_error(documents: list[Document]) -> None:
    with pytest.raises(BadData, match="no text to score"):
        perplexity(tiny_model(), documents)


@pytest.mark.parametrize("transformers", [False, True])
def test_one_token_alone_has_nothing_before_it(transformers: bool) -> None:
    protocol = Protocol(end_of_text_first=False, transformers=transformers)
    with pytest.raises(BadData, match="no document has a second token"):
        perplexity(tiny_model(), [Document("a", "x"), Document("b", "y")], protocol)
    assert perplexity(tiny_model(), [Document("a", "x")]).total.tokens == 1


def test_a_vocabulary_without_end_of_text() -> None:
    tokenizer = Tokenizer.from_merges([], special_tokens={})
    made = LanguageModel(network(vocab_size=256), tokenizer)
    with pytest.raises(BadOption, match=r"no <\|endoftext\|>"):
        perplexity(made, [Document("a", "text")])
    assert perplexity(made, [Document("a", "text")], Protocol(end_of_text_first=False)).total.tokens == 3


def test_the_protocol_is_told() -> None:
    made = tiny_model()
    assert perplexity(made, [Document("a", "text")]).protocol == (
        "text as given; each document by itself, behind end of text; windows of 32 tokens, stride 16; every token "
        "scored once; words are what white space separates, bytes are UTF-8"
    )
    told = Protocol(20, 3, end_of_text_first=False).words(32)
    assert "its first token not scored; windows of 20 tokens, stride 3" in told
