"""The table as a whole: what stands beside what, going on after a stop, and what is missing."""

import json
import math

import pytest

from gpt2.errors import BadOption, Busy, Error
from gpt2.evaluation import paper, published
from gpt2.evaluation.rows import Cell, Missing, Row, accuracy, perplexity
from gpt2.evaluation.sets import Sets
from gpt2.evaluation.store import Store, path_for
from tests.helpers import tiny_model

RAW = " \n = A Title = \n \n He did n't , he said , see the men . \n" * 5


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "lambada_test.jsonl").write_text("".join(json.dumps({"text": f"{n} men saw it"}) + "\n" for n in range(9)))
    (data / "wiki.test.raw").write_text(RAW)
    return data


def run(model, folder, names, out, **options):
    return list(paper.results(model, paper.chosen_rows(names), Sets(folder), folder=out, **options))


def test_the_published_figures_are_the_papers(shared):
    reference = json.loads((shared / "data/gpt2_reference/published_results.json").read_text())
    table = reference["gpt2_paper_table3_zero_shot"]
    names = ["LAMBADA perplexity", "LAMBADA accuracy", "CBT-CN", "CBT-NE", "WikiText-2", "PTB", "enwik8", "text8"]
    for size in published.PARAMETERS:
        assert [published.PAPER[name][size] for name in [*names, "WikiText-103", "1BW"]] == table[size]
    others = reference["gpt2_xl_other_tasks"]
    assert published.PAPER["Winograd"]["1542M"] == others["winograd_acc"]
    assert published.PAPER["CNN/Daily Mail ROUGE-L"]["1542M"] == others["cnn_dm_tldr"]["rougeL"]


@pytest.mark.parametrize(
    ("parameters", "size"),
    [
        (0, "117M"),
        (7_098_368, "117M"),
        (124_439_808, "117M"),
        (215_000_000, "345M"),
        (10**9, "762M"),
        (10**12, "1542M"),
    ],
)
def test_the_nearest_size_is_by_ratio(parameters, size):
    assert published.nearest(parameters) == size


def test_every_row_and_cell_names_a_published_column(tmp_path, folder):
    for row in paper.all_rows():
        assert row.columns
        assert set(row.columns) <= set(published.PAPER)
    for result in run(tiny_model(window=64), folder, ["lambada", "wikitext2"], tmp_path / "out"):
        assert result.scored
        for cell in result.scored:
            assert cell.paper in (None, *result.row.columns)
            assert cell.protocol
        readings = [(cell.metric, cell.reading) for cell in result.scored]
        assert len(set(readings)) == len(readings)


def test_a_row_that_is_not_there_is_named():
    with pytest.raises(BadOption, match=r"no row 'lambda'; there are lambada, cbt-cn"):
        paper.chosen_rows(["lambda"])
    assert [row.name for row in paper.chosen_rows(["ptb", "lambada"])] == ["lambada", "ptb"]


def test_a_stopped_run_goes_on_and_scores_nothing_twice(tmp_path, folder, monkeypatch):
    import gpt2.generation.score as scoring

    model, scored = tiny_model(window=64), []
    real = scoring.score

    def counted(model, items, **options):
        for item, found in zip(items := list(items), real(model, items, **options), strict=True):
            scored.append((tuple(item.context), tuple(item.continuation)))
            yield found

    monkeypatch.setattr(scoring, "score", counted)

    def stop(what, done, of):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, folder, ["lambada"], tmp_path / "out", progress=stop)
    before = list(scored)
    assert len(before) >= 5
    with Store(path_for(model, "lambada", tmp_path / "out")) as store:
        assert len(store) == 5  # nothing that was scored before the stop is lost
    [result] = run(model, folder, ["lambada"], tmp_path / "out")
    assert not set(before[:5]) & set(scored[len(before) :])
    [fresh] = run(model, folder, ["lambada"], tmp_path / "elsewhere")
    assert [(cell.reading, cell.value) for cell in result.scored] == [
        (cell.reading, pytest.approx(cell.value)) for cell in fresh.scored
    ]
    scored.clear()
    run(model, folder, ["lambada"], tmp_path / "out")
    assert scored == []


def test_both_wikitext_rows_share_their_scores(tmp_path, folder):
    model, told = tiny_model(window=64), []
    run(model, folder, ["wikitext2"], tmp_path / "out")
    [result] = run(model, folder, ["wikitext103"], tmp_path / "out", progress=lambda *each: told.append(each))
    assert len(result.scored) == 4
    assert all(done == of for _, done, of in told)


def test_another_model_has_scores_of_its_own(tmp_path, folder):
    one, other = (
        run(tiny_model(seed=seed, window=64), folder, ["lambada"], tmp_path / "out")[0].scored[0].value
        for seed in (0, 1)
    )
    assert one != pytest.approx(other)


def test_the_control_is_a_random_model_of_the_same_shape(tmp_path, folder):
    model = tiny_model(window=64)
    control = paper.random_control(model)
    assert control.config == model.config
    assert control.tokenizer == model.tokenizer
    assert (control.network.wte.weight != model.network.wte.weight).any()
    [result] = run(model, folder, ["wikitext2"], tmp_path / "out", control=True)
    for cell in result.scored:
        beside = result.control_of(cell)
        assert beside is not None
        assert (beside.reading, beside.items) == (cell.reading, cell.items)
        assert beside.value != cell.value


def test_the_harness_reading_stands_beside_the_others(tmp_path, folder):
    [result] = run(tiny_model(window=64), folder, ["wikitext2"], tmp_path / "out")
    harness = [cell for cell in result.scored if cell.harness]
    assert [cell.harness for cell in harness] == ["wikitext"]
    assert result.harness_of(harness[0]) is None
    assert all(result.harness_of(cell) is harness[0] for cell in result.scored if not cell.harness)


def test_nothing_of_a_model_stands_beside_a_baseline():
    cells = [
        Cell("ROUGE", reading, "", 1.0, None, 2, harness=task, baseline=reading == "lead-3")
        for reading, task in (("own", None), ("lead-3", None), ("harness", "a task"))
    ]
    result = paper.Result(paper.all_rows()[0], tuple(cells), tuple(cells))
    own, lead, harness = cells
    assert (result.control_of(own), result.harness_of(own)) == (own, harness)
    assert (result.control_of(lead), result.harness_of(lead)) == (None, None)


def test_a_window_too_small_is_the_rows_to_tell(tmp_path, folder):
    (folder / "lambada_test.jsonl").write_text('{"text": "a word that is muchlongerthanthewindow"}\n')
    [result] = run(tiny_model(window=8), folder, ["lambada"], tmp_path / "out")
    assert not result.scored
    assert "window of 8" in result.cells[0].why


def test_a_row_of_another_module_fits_in(tmp_path, folder):
    def cells(job):
        value, spread = accuracy([True, False])
        yield Cell("exact match %", "x", "two questions", value, spread, 2)
        raise Error("the rest is not to be had")

    model = tiny_model()
    [result] = list(paper.results(model, [Row("x", "X", cells)], Sets(folder), folder=tmp_path / "out"))
    assert result.scored[0].value == 50
    assert result.cells[1] == Missing("X", "the rest is not to be had")
    document = paper.as_json(model, [result])
    assert document["rows"][0]["cells"][0]["paper"] == {}
    assert document["rows"][0]["missing"] == [{"reading": "X", "why": "the rest is not to be had"}]


def test_what_a_model_writes_is_kept_too(tmp_path, folder):
    from gpt2.evaluation.rows import Job
    from gpt2.generation import GenerationOptions, SamplingOptions, complete

    model = tiny_model(window=64)
    options = GenerationOptions(max_tokens=5, seed=3, sampling=SamplingOptions(top_k=2))
    prompts = [[1, 2, 3], [4], [1, 2, 3]]
    with Store(tmp_path / "scores.jsonl") as store:
        job = Job(model, Sets(folder), store)
        written = job.complete(prompts, options, "x")
        assert written == [answer.ids for answer in complete(model, prompts, options)]
        assert len(store) == 2
        model.memo.clear()
        del job.model
        assert Job(None, Sets(folder), store).complete(prompts, options, "x") == written


def test_a_row_that_another_process_scores_is_not_scored_beside(tmp_path, folder):
    model = tiny_model(window=64)
    with Store(path_for(model, "lambada", tmp_path / "out")), pytest.raises(Busy):
        run(model, folder, ["lambada"], tmp_path / "out")


def test_a_stride_above_the_window_is_refused(tmp_path, folder):
    with pytest.raises(BadOption, match="stride is 65"):
        run(tiny_model(window=64), folder, ["wikitext2"], tmp_path / "out", stride=65)


def test_figures_by_hand():
    value, spread = accuracy([True, True, False, True])
    assert value == 75
    assert 0 <= spread[0] < 75 < spread[1] <= 100
    value, spread = perplexity([(2.0, 1.0), (4.0, 2.0)])
    assert value == pytest.approx(math.exp(2))
    assert spread == pytest.approx((math.exp(2), math.exp(2)))
    assert perplexity([(1.0, 2.0)]) == (pytest.approx(math.exp(0.5)), None)


def test_few_items_that_are_all_right_or_wrong_are_not_certain():
    from scipy.stats import binomtest

    for right, of in ((0, 3), (3, 3), (0, 100)):
        share, interval = accuracy([True] * right + [False] * (of - right))
        exact = binomtest(right, of).proportion_ci(0.95, "exact")
        assert share == 100 * right / of
        assert interval == pytest.approx((100 * exact.low, 100 * exact.high))
    assert accuracy([True])[1] is None
