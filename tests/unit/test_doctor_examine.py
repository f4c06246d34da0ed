"""What the doctor makes of what it finds: liars, weights that are others, runners that fail."""

import pytest
import torch

from gpt2.checkpoint import LanguageModel, load, locate, write_directory
from gpt2.doctor import canned, examine
from gpt2.doctor.examine import Finding
from gpt2.doctor.published import Published
from gpt2.errors import BadCheckpoint, Unavailable
from gpt2.runners import choices, choose, native
from gpt2.runners.plain import PlainRunner
from tests.doctor_runners import Lying
from tests.helpers import tiny_model


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine where nothing was measured and only plain PyTorch is."""
    monkeypatch.setenv("GPT2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "reason", lambda config, dtype: "not in this test")
    monkeypatch.setattr(choose, "_compile_obstacle", lambda device: "there is no C++ compiler")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def places(model):
    return examine.reference(model)


def test_the_truth(model, places):
    native_one, compiled, plain = examine.examine(model, places)
    assert (native_one.verdict, native_one.why) == ("absent", "not in this test")
    assert (compiled.verdict, compiled.why) == ("absent", "there is no C++ compiler")
    assert (plain.verdict, plain.chosen) == ("true", True)
    assert plain.tokens_per_second > 0
    assert plain.ceiling_share > 0
    assert examine.truthful([native_one, compiled, plain])
    assert examine.meaning([native_one, compiled, plain], None).sentence == "truthful machine"


def test_what_was_measured_is_remembered_and_used(monkeypatch, model, places):
    monkeypatch.setattr(choose, "_compile_obstacle", lambda device: None)
    rates = {"plain": 10.0, "compiled": 100.0}

    def build(name, model, slots, threads):
        runner = PlainRunner(model.network, slots)
        runner.name = name
        return runner

    monkeypatch.setattr(examine.measure, "speed", lambda runner, *_: examine.measure.Speed(1.0, rates[runner.name]))
    findings = list(examine.examine(model, places, build=build))
    assert [finding.runner for finding in findings if finding.chosen] == ["compiled"]
    device, threads = torch.device("cpu"), torch.get_num_threads()
    assert choices.remembered(model.config, "float32", device, threads) == rates


@pytest.mark.parametrize("by", [0.01, float("nan")])
def test_a_liar_is_found_and_not_remembered(model, places, by):
    def build(name, model, slots, threads):
        return Lying(model.network, slots, by=by, at=20)

    findings = list(examine.examine(model, places, build=build))
    assert findings[-1].verdict == "false"
    assert "position 20" in findings[-1].where
    assert not examine.truthful(findings)
    assert examine.meaning(findings, None).sentence == "this machine computes wrongly: plain in float32"
    assert choices.remembered(model.config, "float32", torch.device("cpu"), torch.get_num_threads()) == {}
    assert choices.known_wrong(model.config, "float32", torch.device("cpu")) == {"plain"}
    list(examine.examine(model, places))
    assert choices.known_wrong(model.config, "float32", torch.device("cpu")) == set()


def test_a_runner_that_fails_is_a_finding(monkeypatch, model, places):
    monkeypatch.setattr(choose, "_compile_obstacle", lambda device: None)

    def build(name, model, slots, threads):
        if name == "compiled":
            raise Unavailable("the compiler has gone home")
        return PlainRunner(model.network, slots)

    findings = list(examine.examine(model, places, build=build))
    assert (findings[1].verdict, findings[1].why) == ("failed", "Unavailable: the compiler has gone home")
    assert examine.truthful(findings)

    def breaks(name, model, slots, threads):
        raise RuntimeError("driver\n  lost")

    findings = list(examine.examine(model, places, build=breaks))
    assert findings[-1].why == "RuntimeError: driver lost"
    assert not examine.truthful(findings)
    assert "plain in float32" in examine.meaning(findings, None).sentence


def test_the_compiler_can_be_left_out(monkeypatch, model, places):
    monkeypatch.setattr(choose, "_compile_obstacle", lambda device: None)
    findings = list(examine.examine(model, places, compile=False))
    assert findings[1] == Finding("float32", "compiled", "absent", why="left out by --no-compile")


def test_the_shipped_model_has_stored_figures_and_others_have_not(model, tmp_path):
    shipped = load("bookworm")
    assert examine.stored_figures(shipped) == examine.STORED
    assert examine.stored_figures(load(locate("bookworm"))) == examine.STORED
    assert examine.stored_figures(model) is None
    write_directory(shipped.network, shipped.tokenizer, tmp_path / "copy")
    assert examine.stored_figures(load(tmp_path / "copy")) is None


def test_a_shipped_model_that_was_changed_is_told(monkeypatch, tmp_path):
    shipped = load("bookworm")
    write_directory(shipped.network, shipped.tokenizer, tmp_path / "bookworm")
    monkeypatch.setattr(examine, "locate", lambda name: tmp_path / "bookworm")
    changed = LanguageModel(shipped.network, shipped.tokenizer, "bookworm", tmp_path / "bookworm")
    with pytest.raises(BadCheckpoint, match="install it again"):
        examine.stored_figures(changed)


def test_the_control_is_the_shipped_model_on_this_device():
    assert examine.control("cpu").verdict == "true"

    def build(name, model, slots, threads):
        return Lying(model.network, slots, by=0.01, at=512)

    found = examine.control("cpu", build)
    assert found.verdict == "false"
    assert examine.meaning([], found).sentence == "this machine computes wrongly: plain in float32"


def finding(runner="plain", verdict="true", ok=None, dtype="float32"):
    published = None if ok is None else Published(1e-5 if ok else 2.0, "text", ok, ok)
    return Finding(dtype, runner, verdict, published=published)


def test_true_weights_on_a_truthful_machine():
    findings = [finding("native", ok=True), finding(ok=True), finding(dtype="int8")]
    assert examine.meaning(findings, finding()).sentence == "true weights, truthful machine"


def test_what_it_means_in_values():
    one, other = finding(ok=True), finding("native", ok=False)
    for findings, truthful, true_weights in (
        ([one], True, True),
        ([other], True, False),
        ([one, other], False, None),
        ([finding()], True, None),
        ([finding(verdict="failed")], False, None),
    ):
        assert examine.meaning(findings, None)[:2] == (truthful, true_weights)


def test_other_weights_on_a_truthful_machine():
    assert examine.meaning([finding("native", ok=False), finding(ok=False)], finding()).sentence == (
        "these are not OpenAI's weights"
    )


@pytest.mark.parametrize(
    ("findings", "control", "named"),
    [
        # The runners agree on other values, but the shipped model's come out wrong here too: it is not the weights.
        ([finding("native", ok=False), finding(ok=False)], finding(verdict="false"), "plain in float32"),
        # One runner says what is published and another does not.
        ([finding("native", ok=False), finding(ok=True)], finding(), "native in float32"),
        ([finding("native", verdict="false", ok=True), finding(ok=True)], finding(), "native in float32"),
        ([finding(ok=True), finding("aten", verdict="false", dtype="int8")], finding(), "aten in int8"),
    ],
)
def test_a_machine_that_computes_wrongly(findings, control, named):
    assert examine.meaning(findings, control).sentence == f"this machine computes wrongly: {named}"


def test_canned_bounds_are_stated_for_every_width():
    assert {"float32", *canned.SHARES} == set(examine.WIDTHS)
