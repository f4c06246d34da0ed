"""`PlainRunner`: what the protocol promises, held to the network itself."""

import math
import os
import signal
from pathlib import Path

import pytest
import torch

from gpt2.errors import BadOption, BadPrompt, ContextOverflow
from gpt2.runners import Feed
from gpt2.runners.plain import PlainRunner
from tests.generation_models import network

IDS = torch.randint(257, (40,), generator=torch.Generator().manual_seed(4)).tolist()


def expected(made: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return made(torch.tensor([ids]))[0]


def assert_close(ours: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(ours, other, atol=1e-4, rtol=0)


def test_any_mixture_of_feeds_in_the_order_they_came() -> None:
    made = network()
    runner = PlainRunner(made, 6)
    texts = {5: IDS[:4], 0: IDS[4:12], 3: IDS[12:13], 2: IDS[13:20]}
    assert runner.read([Feed(slot, ids, 0) for slot, ids in texts.items()]).shape == (0, 257)
    assert [runner.length(slot) for slot in range(6)] == [8, 0, 7, 1, 0, 4]
    # One token into slots that do not lie side by side, several into another, and a new text, all at once.
    more = [Feed(5, [7]), Feed(2, [8, 9, 10], 2), Feed(0, [11], 0), Feed(4, [12]), Feed(3, [13])]
    logits = runner.read(more)
    assert logits.dtype == torch.float32
    wanted = [
        expected(made, [*texts[5], 7])[-1:],
        expected(made, [*texts[2], 8, 9, 10])[-2:],
        expected(made, [12]),
        expected(made, [*texts[3], 13])[-1:],
    ]
    assert_close(logits, torch.cat(wanted))
    assert [runner.length(slot) for slot in range(6)] == [9, 0, 10, 2, 1, 5]
    assert_close(runner.read([Feed(0, [14])]), expected(made, [*texts[0], 11, 14])[-1:])


def test_rewinding_and_copying() -> None:
    made = network()
    runner = PlainRunner(made, 3)
    runner.read([Feed(0, IDS[:10]), Feed(1, IDS[10:14])])
    runner.copy(0, 1, 6)
    runner.rewind(0, 3)
    logits = runner.read([Feed(1, [1, 2]), Feed(0, [3])])
    assert_close(logits, torch.cat([expected(made, [*IDS[:6], 1, 2])[-1:], expected(made, [*IDS[:3], 3])[-1:]]))
    runner.copy(1, 1, 2)
    assert_close(runner.read([Feed(1, [5])]), expected(made, [*IDS[:2], 5])[-1:])
    for call in (lambda: runner.rewind(0, 5), lambda: runner.rewind(0, -1), lambda: runner.copy(0, 2, 5)):
        with pytest.raises(BadOption, match="Slot 0 holds 4"):
            call()


def test_refusals_leave_every_slot_as_it_was() -> None:
    runner = PlainRunner(network(), 2)
    runner.read([Feed(0, IDS[:30])])
    with pytest.raises(ContextOverflow, match="holds 30 tokens, and 3 more"):
        runner.read([Feed(1, [1]), Feed(0, [1, 2, 3])])
    for bad in (257, -1):
        with pytest.raises(BadPrompt, match=f"{bad} is not"):
            runner.read([Feed(1, [1]), Feed(0, [1, bad])])
    assert [runner.length(0), runner.length(1)] == [30, 0]
    training = network(attn_pdrop=0.1).train()
    with pytest.raises(BadOption, match="training mode"):
        PlainRunner(training, 1)


def test_what_is_not_finite_stays_in_its_slot_and_goes_with_it() -> None:
    made = network()
    runner = PlainRunner(made, 3)
    runner.read([Feed(0, IDS[:5]), Feed(2, IDS[:5])])
    runner._cache.values[1, 2, 0, 3] = math.nan
    logits = runner.read([Feed(0, [1]), Feed(2, [1]), Feed(1, [1])])
    assert logits.isnan().all(dim=1).tolist() == [False, True, False]
    runner.copy(2, 1, 5)
    for slot in (1, 2):
        runner.rewind(slot, 0)
        # Beside a longer row, attention looks at all that the slot's memory holds.
        logits = runner.read([Feed(0, [1]), Feed(slot, [3])])
        assert logits.isfinite().all()
        assert_close(logits[1], expected(made, [3])[-1])


def test_slots_cost_nothing_until_they_are_used() -> None:
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("left out: there is no /proc here")

    def resident() -> int:
        return int(status.read_text().split()[1]) * 4096

    made = network(n_positions=1024, n_embd=64)
    before = resident()
    runner = PlainRunner(made, 1000)  # a gigabyte, if all were used
    runner.read([Feed(999, IDS)])
    assert resident() - before < 50 * 2**20
    assert runner._cache.keys.nbytes + runner._cache.values.nbytes > 2**30 - 2**25


def test_bfloat16() -> None:
    made = network().bfloat16()
    runner = PlainRunner(made, 2)
    assert runner.dtype == "bfloat16"
    logits = runner.read([Feed(0, IDS[:3]), Feed(1, IDS[:1])])
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ([Feed(3, [1])], "no slot 3"),
        ([Feed(-1, [1])], "no slot -1"),
        ([Feed(0, [1]), Feed(0, [2])], "fed twice"),
        ([Feed(0, [], 0)], "fed 0 ids"),
        ([Feed(0, [1], 2)], "2 rows of logits"),
        ([Feed(0, [1, 2], -1)], "-1 rows of logits"),
    ],
)
def test_feeds_that_make_no_sense_are_refused_before_anything_is_read(feeds: list[Feed], message: str) -> None:
    runner = PlainRunner(network(), 3)
    with pytest.raises(BadOption, match=message):
        runner.read([Feed(1, [1, 2]), *feeds])
    assert runner.length(1) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="left out: this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_that_fork_have_each_their_own_keys_and_values() -> None:
    """Enough slots for memory that is mapped; parent and child then read different texts into the same slot."""
    made = network(n_positions=512)
    runner, ready, go = PlainRunner(made, 16), os.pipe(), os.pipe()
    texts = [[1, 2, 3], [40, 50, 60]]
    whole = []
    for text in texts:
        fresh = PlainRunner(made, 1)
        fresh.read([Feed(0, text)])
        whole.append(fresh.read([Feed(0, [7])]))
    child = os.fork()
    if not child:
        fine = False
        try:
            signal.alarm(60)
            torch.set_num_threads(1)  # the others did not come along
            os.read(go[0], 1)
            runner.read([Feed(0, texts[1])])
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            fine = torch.allclose(runner.read([Feed(0, [7])]), whole[1], atol=1e-5)
        finally:
            os._exit(0 if fine else 1)
    os.close(ready[1])
    runner.read([Feed(0, texts[0])])
    os.write(go[1], b"x")
    os.read(ready[0], 1)
    torch.testing.assert_close(runner.read([Feed(0, [7])]), whole[0])
    os.write(go[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for end in (ready[0], *go):
        os.close(end)
