"""Which runner a model gets, what stands in the way of the others, and what is said when memory does not suffice."""

import pytest
import torch

from gpt2.checkpoint import LanguageModel
from gpt2.config import SIZES, GPT2Config
from gpt2.errors import BadOption, Notice, Unavailable
from gpt2.model import GPT2
from gpt2.runners import choices, choose, machine, measure, native
from gpt2.runners.runner import Feed
from tests.helpers import byte_tokenizer, tiny_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GPT2_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def without_native(monkeypatch):
    monkeypatch.setattr(native, "reason", lambda config, dtype: "not in this test")


@pytest.fixture
def with_compiler(monkeypatch):
    monkeypatch.setattr(choose, "_compile_obstacle", lambda device: None)


@pytest.fixture
def without_compiler(monkeypatch):
    monkeypatch.setattr(choose.shutil, "which", lambda name: None)


def model(dtype="float32") -> LanguageModel:
    tokenizer = byte_tokenizer()
    config = GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=32, n_embd=64, n_layer=1, n_head=2)
    network = GPT2(config).initialise(0).eval().requires_grad_(False)
    return LanguageModel(network.bfloat16() if dtype == "bfloat16" else network, tokenizer, "tiny", dtype=dtype)


def names(found):
    return [choice.name for choice in found]


def chosen(found):
    (one,) = [choice for choice in found if choice.chosen]
    return one


def remember(subject, **rates):
    choices.remember(subject.config, subject.dtype, CPU, torch.get_num_threads(), rates)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_native_where_it_can_and_plain_where_nothing_was_measured(monkeypatch, with_compiler, dtype):
    monkeypatch.setattr(native, "reason", lambda config, dtype: None)
    found = choose.explain(model(dtype))
    assert names(found) == ["native", "compiled", "plain"]
    assert chosen(found).name == "native"
    monkeypatch.setattr(native, "reason", lambda config, dtype: "no such processor")
    found = choose.explain(model(dtype))
    assert (found[0].possible, found[0].why) == (False, "no such processor")
    assert chosen(found).name == "plain"
    assert "gpt2 doctor" in chosen(found).why


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantised_models_take_native_or_aten(monkeypatch, dtype):
    monkeypatch.setattr(native, "reason", lambda config, dtype: None)
    assert chosen(choose.explain(model(dtype))).name == "native"
    monkeypatch.setattr(native, "reason", lambda config, dtype: "no")
    assert names(choose.explain(model(dtype))) == ["native", "aten"]
    assert chosen(choose.explain(model(dtype))).name == "aten"
    assert chosen(choose.explain(model(dtype), compile=False)).name == "aten"


@pytest.mark.parametrize(("compiled", "expected"), [(200.0, "compiled"), (101.0, "plain"), (50.0, "plain")])
def test_what_was_measured_decides(without_native, with_compiler, compiled, expected):
    subject = model()
    remember(subject, plain=100.0, compiled=compiled)
    assert chosen(choose.explain(subject)).name == expected
    assert {choice.name: choice.measured for choice in choose.explain(subject)} == {
        "native": None,
        "compiled": compiled,
        "plain": 100.0,
    }
    # Nobody else's measurement counts.
    assert chosen(choose.explain(model("bfloat16"))).name == "plain"


def test_a_measurement_does_not_bring_a_compiler_back(without_native, without_compiler):
    subject = model()
    remember(subject, plain=100.0, compiled=500.0)
    assert chosen(choose.explain(subject)).name == "plain"
    assert "compiler" in choose.explain(subject)[1].why


def test_on_a_gpu_the_graph_and_on_apples_plain():
    """Names only: no such device is needed to know what would be taken."""
    for dtype in ("float32", "bfloat16"):
        assert choose._names(dtype, CUDA) == ("graph", "compiled", "plain")
        assert choose._names(dtype, torch.device("mps")) == ("plain",)
    assert choose._choose(["graph", "compiled", "plain"], {}, None, CUDA)[0] == "graph"
    assert choose._choose(["graph", "compiled", "plain"], {}, True, CUDA)[0] == "graph"
    assert choose._choose(["graph", "compiled", "plain"], {}, False, CUDA)[0] == "plain"


def test_flags_override(with_compiler):
    assert chosen(choose.explain(model(), compile=False)).name == "plain"
    assert chosen(choose.explain(model(), compile=True)).name == "compiled"
    assert choose.runner(model(), 2, compile=False).name == "plain"


def test_a_wish_that_cannot_be_had_is_told_in_one_line(without_compiler):
    with pytest.warns(Notice, match="no C\\+\\+ compiler") as notices:
        assert choose.runner(model(), 1, compile=True).name in ("native", "plain")
    assert len(notices) == 1
    assert "\n" not in str(notices[0].message)


def test_a_runner_that_does_not_start_gives_way_to_a_plain_one(monkeypatch):
    real = choose._build

    def fails(name, *arguments):
        if name != "plain":
            raise Unavailable("the kernel is of another planet")
        return real(name, *arguments)

    monkeypatch.setattr(choose, "_build", fails)
    monkeypatch.setattr(native, "reason", lambda config, dtype: None)
    with pytest.warns(Notice, match="native does not start here .the kernel is of another planet.; plain is used"):
        assert choose.runner(model(), 1).name == "plain"


def test_the_chosen_runner_runs_and_says_what_it_is():
    for dtype in ("float32", "bfloat16", "int8", "int4"):
        runner = choose.runner(model(dtype), 2)
        assert (runner.slots, runner.dtype) == (2, dtype)
        assert runner.read([Feed(0, [1, 2, 3], 2), Feed(1, [4], 1)]).shape == (3, 257)


def test_bad_options_are_refused():
    with pytest.raises(BadOption, match="slots is 0"):
        choose.runner(model(), 0)
    with pytest.raises(BadOption, match="no runner 'quantum'"):
        choose.build("quantum", model(), 1)


def test_slots_that_do_not_fit_say_how_many_would(monkeypatch):
    subject = model()
    weights, each = measure.weight_bytes(subject.config, "float32"), choose.slot_bytes(subject.config, "float32")
    monkeypatch.setattr(machine, "available_memory", lambda device="cpu": weights + 5 * each)
    assert choose.runner(subject, 5).slots == 5
    with pytest.raises(choose.OutOfMemory, match=r"for 6 texts at once do not fit .* 5 at once would fit"):
        choose.runner(subject, 6)


def test_weights_that_do_not_fit_say_which_width_would(monkeypatch):
    config = SIZES["gpt2"].config
    monkeypatch.setattr(machine, "available_memory", lambda device="cpu": 260 * 10**6)
    said = choose._what_fits(config, "float32", 1, CPU, "plain")
    assert "0.5 GB of float32 weights" in said
    assert "dtype int8 would fit" in said
    assert "0.3 GB that cpu has" in said
    monkeypatch.setattr(machine, "available_memory", lambda device="cpu": 10**6)
    assert "a smaller model would fit" in choose._what_fits(config, "float32", 1, CPU, "plain")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), OSError(12, "x")],
)
def test_an_allocation_that_fails_is_told_with_figures(monkeypatch, error):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(choose, "_build", fails)
    with pytest.raises(choose.OutOfMemory, match=r"weights and .* of keys and values"):
        choose.build("plain", model(), 1)


def test_slots_worth_having(monkeypatch):
    config = SIZES["gpt2"].config
    assert choose.slot_bytes(config, "float32") == 2 * 12 * 1024 * 768 * 4
    assert choose.slot_bytes(config, "bfloat16") == choose.slot_bytes(config, "float32") // 2
    for why, share in ((None, 2), ("no", 1)):
        monkeypatch.setattr(native, "reason", lambda config, dtype, why=why: why)
        assert choose.slot_bytes(config, "int8") == choose.slot_bytes(config, "float32") // share
    assert choose.fitting_slots(tiny_model().config, "float32") == 64


def test_slots_worth_having_follow_the_memory(monkeypatch):
    config = SIZES["gpt2"].config
    monkeypatch.setattr(machine, "available_memory", lambda device="cpu": 64 * 2**30)
    assert choose.fitting_slots(config, "float32") == 2 * 2**30 // choose.slot_bytes(config, "float32")
    assert choose.fitting_slots(config, "bfloat16", CUDA) == 64
    monkeypatch.setattr(machine, "available_memory", lambda device="cpu": 2**30)
    assert 1 < choose.fitting_slots(config, "float32") < 8
    monkeypatch.setattr(machine, "available_memory", lambda device="cpu": 2**20)
    assert choose.fitting_slots(config, "float32") == 1
    # Nobody can tell: the bound alone.
    monkeypatch.setattr(machine, "available_memory", lambda device="cpu": 0)
    assert choose.fitting_slots(config, "float32") == 28


def test_a_full_slot_of_aten_is_float32_wherever_native_could_run(monkeypatch):
    config = SIZES["gpt2"].config
    monkeypatch.setattr(native, "reason", lambda config, dtype: None)
    assert choose.slot_bytes(config, "int8", "aten") == choose.slot_bytes(config, "float32")
    assert choose.slot_bytes(config, "int8") == choose.slot_bytes(config, "int8", "native")


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_a_graph_holds_the_projections_twice(monkeypatch, dtype, width):
    config = SIZES["gpt2"].config
    weights, each = measure.weight_bytes(config, dtype), choose.slot_bytes(config, dtype)
    copy = width * 12 * (768 * 2304 + 768 * 768 + 2 * 768 * 3072)
    monkeypatch.setattr(machine, "available_memory", lambda device="cpu": weights + copy + 2 * each)
    choose._check_memory(config, dtype, 2, CUDA, "graph")
    with pytest.raises(choose.OutOfMemory, match="2 at once would fit"):
        choose._check_memory(config, dtype, 3, CUDA, "graph")
    choose._check_memory(config, dtype, 3, CUDA, "plain")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_network_in_training_is_refused_whatever_would_run_it(dtype):
    subject = model(dtype)
    object.__setattr__(subject.config, "resid_pdrop", 0.1)
    subject.network.train()
    with pytest.raises(BadOption, match=r"in training mode and its dropout would act; call network\.eval"):
        choose.runner(subject, 1)
    subject.network.eval()
    assert choose.runner(subject, 1).slots == 1


def found_wrong(subject, *names):
    choices.remember_verdicts(subject.config, subject.dtype, CPU, dict.fromkeys(names, False))


@pytest.mark.parametrize(("dtype", "plainest"), [("float32", "plain"), ("int8", "aten")])
def test_what_the_doctor_found_wrong_is_not_taken(monkeypatch, dtype, plainest):
    monkeypatch.setattr(native, "reason", lambda config, dtype: None)
    subject = model(dtype)
    found_wrong(subject, "native")
    found = choose.explain(subject)
    assert (found[0].possible, found[0].wrong, found[0].chosen) == (True, True, False)
    assert "gpt2 doctor` found that it computes wrongly" in found[0].why
    assert chosen(found).name == plainest
    assert choose.runner(subject, 1).name == plainest
    choices.remember_verdicts(subject.config, dtype, CPU, {"native": True})
    assert chosen(choose.explain(subject)).name == "native"


def test_wishes_for_what_is_wrong_are_not_granted_and_it_is_said(monkeypatch, with_compiler):
    monkeypatch.setattr(native, "reason", lambda config, dtype: None)
    subject = model()
    found_wrong(subject, "plain", "compiled")
    assert chosen(choose.explain(subject, compile=False)).name == "native"
    assert chosen(choose.explain(subject, compile=True)).name == "native"
    monkeypatch.setattr(choose, "build", lambda name, *_: name)
    with pytest.warns(Notice, match="--no-compile cannot be had here .*computes wrongly.*runs on native"):
        assert choose.runner(subject, 1, compile=False) == "native"
    with pytest.warns(Notice, match="--compile cannot be had here .*computes wrongly.*runs on native"):
        assert choose.runner(subject, 1, compile=True) == "native"


def test_where_all_are_wrong_the_plainest_runs_and_it_is_said(without_native, with_compiler):
    subject = model()
    found_wrong(subject, "plain", "compiled")
    with pytest.warns(Notice, match="plain is used, though .*computes wrongly here, as every other runner"):
        assert choose.runner(subject, 1).name == "plain"
