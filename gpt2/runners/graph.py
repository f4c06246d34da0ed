"""`GraphRunner`: the whole token step, sampling included, captured once in a CUDA graph and replayed.

A step of one row is some eighty kernels of about a microsecond each; launched one by one they would take longer than
they run. A graph fixes addresses, so everything that changes between steps lies in static memory: ids, slots, lengths,
seeds, numbers of tokens, top_k and temperature of each row. There is one graph for each number of rows (a power of
two; rows that are too many write in a slot that is nobody's) and each way to end: with logits, or with a drawn id.

`draw` runs ahead: where one call goes on from the last, the step after it is already under way when it returns. Its
token is fed to itself on the device. If the next call asks for something else, that step is forgotten, and what it
wrote lies behind every slot's length.

The step itself is `static.py`'s, with the operations of `kernels.py` on CUDA. Elsewhere it runs uncaptured: a test of
everything but the capture.
"""

import struct
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpt2.errors import BadOption, Unavailable
from gpt2.model import GPT2
from gpt2.runners.noise import gumbel_noise, mixed_seed
from gpt2.runners.runner import Feed, check_fed
from gpt2.runners.static import Layer, Operations, StaticSlots, block_step, prompt_block

# Rows of the static memory of a step, (7, B) int64. Temperatures are float64 in the same 64 bits.
_ID, _SLOT, _LENGTH, _SEED, _NUMBER, _TOP_K, _TEMPERATURE = range(7)

# Prompts of this many tokens in all are worth the seconds that compiling their block takes, once.
_COMPILED_PROMPT = 4096

# top_k asks for the k-th highest score: of so many that are sorted, the first of these that is large enough.
_WIDEST = (64, 1024)

_LOGITS = -1  # the way to end a step that draws nothing; the others are how many scores top_k needs, 0 for none


class GraphRunner(StaticSlots):
    """Runs a network on CUDA with a captured token step, float32 or bfloat16.

    Takes a copy of the blocks' projections, laid out for reading by rows. drawable: `draw` draws ids below this
    (the whole vocabulary, unless it is set: that may be padded past the tokenizer's last id).

    Raises Unavailable for a network that is not on CUDA, unless `uncaptured`, which is for tests.
    """

    name = "graph"

    def __init__(self, network: GPT2, slots: int, *, uncaptured: bool = False) -> None:
        if network.device.type != "cuda" and not uncaptured:
            raise Unavailable(f"A graph is captured on CUDA only, and this network is on {network.device.type}.")
        super().__init__(network, slots, copy=True)
        self.drawable = network.config.vocab_size
        self._captures, self._compiles = not uncaptured, True
        self._choose: Callable[..., Tensor] = choose
        if self.device.type == "cuda":
            self._use_kernels()
        self._places = torch.arange(network.config.n_positions, device=self.device)
        self._steps: dict[tuple[int, int, int], _Step] = {}
        self._ahead: tuple[_Step, list[tuple[int, ...]]] | None = None  # under way: the step, and what it was fed
        self._last: list[tuple[int, ...]] | None = None  # what would go on from the last draw, its ids left out

    def _use_kernels(self) -> None:
        try:
            from gpt2.runners import kernels
        except ImportError:
            return  # plain PyTorch is slower and as right
        self.operations = kernels.KernelOperations(self.config)
        self._choose = kernels.choose
        # Any number of rows and tokens; it fuses what is between the matrix products.
        compiled = torch.compile(prompt_block, dynamic=True)

        def block(
            operations: Operations,
            x_RTC: Tensor,
            keys: Tensor,
            values: Tensor,
            slots_R: Tensor,
            start: int,
            layer: Layer,
        ) -> Tensor:
            is_large = start == 0 and x_RTC.shape[0] * x_RTC.shape[1] >= _COMPILED_PROMPT
            if is_large and self._compiles:
                try:
                    return compiled(operations, x_RTC, keys, values, slots_R, start, layer)
                except Exception:  # no compiler here: as right, and a third slower
                    self._compiles = False
            return prompt_block(operations, x_RTC, keys, values, slots_R, start, layer)

        self._prompt_block = block

    def rewind(self, slot: int, length: int) -> None:
        self._ahead = None  # it was computed from what may be replaced now
        super().rewind(slot, length)

    def copy(self, source: int, target: int, length: int) -> None:
        self._ahead = None
        super().copy(source, target, length)

    def read(self, feeds: Sequence[Feed]) -> Tensor:
        self._ahead = None
        return super().read(feeds)

    @torch.no_grad()
    def draw(
        self,
        slots: Sequence[int],
        ids: Sequence[int],
        seeds: Sequence[int],
        numbers: Sequence[int],
        temperatures: Sequence[float],
        top_ks: Sequence[int | None],
    ) -> list[int]:
        """Reads one id into each of these slots and draws the next of each, as `generation.sampling` does.

        numbers: how many tokens each text has so far, the one that is fed included: the number of the one that is
        drawn. temperatures: 0 takes the highest. top_ks: None or 0 keeps all.

        Returns an id for each row, or -1 where its scores are not finite. Errors as `read`.
        """
        check_fed(self.config, self._lengths, [Feed(slot, [id]) for slot, id in zip(slots, ids, strict=True)])
        rows = [self._row(*row) for row in zip(slots, ids, seeds, numbers, temperatures, top_ks, strict=True)]
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[1] == rows:
            step = ahead[0]
        else:
            step = self._loaded(rows, self._ending(top_ks))
            step.launch()
        drawn = step.result()[: len(rows)].tolist()
        for slot in slots:
            self._lengths[slot] += 1
        goes_on = self._last is not None and self._last == [row[1:] for row in rows]
        following = [
            (id, row[_SLOT], row[_LENGTH] + 1, row[_SEED], row[_NUMBER] + 1, *row[_TOP_K:])
            for id, row in zip(drawn, rows, strict=True)
        ]
        self._last = [row[1:] for row in following]
        if goes_on and min(drawn) >= 0 and max(row[_LENGTH] for row in following) < self.config.n_positions:
            step.launch()
            self._ahead = step, following
        return drawn

    def _step(self, slots: list[int], ids: list[int]) -> Tensor:
        rows = [self._row(slot, id, 0, 0, 0.0, None) for slot, id in zip(slots, ids, strict=True)]
        step = self._loaded(rows, _LOGITS)
        step.launch()
        return step.output[: len(rows)].clone()

    def _row(
        self, slot: int, id: int, seed: int, number: int, temperature: float, top_k: int | None
    ) -> tuple[int, ...]:
        [bits] = struct.unpack("=q", struct.pack("=d", temperature))
        return id, slot, self._lengths[slot], mixed_seed(seed), number, top_k or 0, bits

    def _ending(self, top_ks: Sequence[int | None]) -> int:
        most = max(top_k or 0 for top_k in top_ks)
        if most == 0 or most >= self.drawable:
            # A top_k of the whole vocabulary filters nothing, and `choose` then needs no scores in order.
            return 0 if all(not top_k or top_k >= self.drawable for top_k in top_ks) else self.drawable
        return min(next((width for width in _WIDEST if width >= most), self.drawable), self.drawable)

    def _loaded(self, rows: list[tuple[int, ...]], ending: int) -> "_Step":
        """The step for so many rows, with these in its memory."""
        if not rows:
            raise BadOption("A draw needs at least one row.")
        B = 1 << (len(rows) - 1).bit_length()
        key = (B, ending, self.drawable)
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = _Step(self, B, ending)
        nobody = (0, self.slots, 0, 0, 0, 0, 0)
        step.load([*rows, *[nobody] * (B - len(rows))])
        return step

    def _run(self, state_7B: Tensor, ending: int) -> Tensor:
        """The token step: logits (B, V), or drawn ids (B,), from what lies in static memory. Asks the host nothing."""
        lengths_B, slots_B = state_7B[_LENGTH], state_7B[_SLOT]
        x_BC = self._embed(state_7B[_ID], lengths_B)
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            x_BC = block_step(self.operations, x_BC, keys, values, slots_B, lengths_B, self._places, layer)
        logits_BV = self._head(x_BC)
        if ending == _LOGITS:
            return logits_BV
        logits_BV = logits_BV[:, : self.drawable]
        temperatures_B = state_7B[_TEMPERATURE].view(torch.float64)
        floors_B = lowest(logits_BV, temperatures_B, state_7B[_TOP_K], ending)
        return self._choose(logits_BV, floors_B, state_7B[_SEED], state_7B[_NUMBER], temperatures_B)


class _Step:
    """One captured step: its static memory, its graph, and where its result is."""

    def __init__(self, runner: GraphRunner, B: int, ending: int) -> None:
        self._runner, self._ending = runner, ending
        on_gpu = runner.device.type == "cuda"
        self._host = torch.zeros(7, B, dtype=torch.int64, pin_memory=on_gpu)
        self._drawn = torch.zeros(B, dtype=torch.int64, pin_memory=on_gpu)
        self._host[_SLOT] = runner.slots
        self._state = self._host.to(runner.device)
        self._advance = torch.zeros(7, 1, dtype=torch.int64)
        self._advance[[_LENGTH, _NUMBER]] = 1
        self._advance = self._advance.to(runner.device)
        self.output: Tensor
        self._graph: torch.cuda.CUDAGraph | None = None
        if runner._captures:
            self._capture()

    def load(self, rows: list[tuple[int, ...]]) -> None:
        """Puts rows into static memory. A copy that is still under way reads the host's side, so that is waited for."""
        if self._state.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self._host.copy_(torch.tensor(rows, dtype=torch.int64).t())
        self._state.copy_(self._host, non_blocking=True)

    def launch(self) -> None:
        """Starts the step; it leaves its own continuation in static memory."""
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()

    def result(self) -> Tensor:
        """The drawn ids (B,), on the host, once they are there."""
        if self._state.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return self._drawn

    def _run(self) -> None:
        self.output = self._runner._run(self._state, self._ending)
        if self._ending != _LOGITS:
            self._drawn.copy_(self.output, non_blocking=True)
            self._state[_ID] = self.output.clamp(min=0)
            self._state += self._advance

    def _capture(self) -> None:
        # Twice before, on a stream of its own: kernels are compiled and libraries set up, which no graph may hold.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._run()
                self._state.copy_(self._host)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        self._graph = graph


def lowest(logits_BV: Tensor, temperatures_B: Tensor, top_ks_B: Tensor, widest: int) -> Tensor:
    """The lowest score (B,), float32, that each row's top_k leaves: -inf for 0. widest: at least the largest top_k."""
    nothing_B = torch.full_like(logits_BV[:, 0], -torch.inf)
    if widest == 0:
        return nothing_B
    top_BK = _highest(logits_BV, min(widest, logits_BV.shape[1]))
    kth_B = top_BK.gather(1, (top_ks_B.clamp(1, top_BK.shape[1]) - 1)[:, None])[:, 0]
    return torch.where(top_ks_B > 0, kth_B / _divisor(temperatures_B), nothing_B)


def _highest(scores_BV: Tensor, k: int) -> Tensor:
    """The k highest of each row, falling. A GPU is quicker in two rounds: few of many, by pieces, then of those."""
    B, V = scores_BV.shape
    if not scores_BV.is_cuda or 64 * k > V:
        return scores_BV.topk(k).values
    pieces = 32
    filled = -(-V // pieces) * pieces
    padded_BV = torch.nn.functional.pad(scores_BV, (0, filled - V), value=-torch.inf)
    best = padded_BV.view(B * pieces, -1).topk(k, sorted=False).values
    return best.view(B, -1).topk(k).values


def choose(logits_BV: Tensor, floors_B: Tensor, seeds_B: Tensor, numbers_B: Tensor, temperatures_B: Tensor) -> Tensor:
    """The ids (B,) that `generation.sampling.sample` draws: greedy at temperature 0, Gumbel's draw otherwise.

    floors_B: scores below are left out. seeds_B: `noise.mixed_seed`s. -1 where the highest score is not finite.
    """
    scores_BV = logits_BV.float() / _divisor(temperatures_B)[:, None]
    ids_1V = torch.arange(scores_BV.shape[1], device=scores_BV.device)[None]
    drawn_BV = scores_BV.double() + gumbel_noise(seeds_B, numbers_B, ids_1V)
    drawn_BV = drawn_BV.masked_fill(scores_BV < floors_B[:, None], -torch.inf)
    ids_B = torch.where((temperatures_B > 0)[:, None], drawn_BV, scores_BV.double()).argmax(dim=-1)
    return ids_B.where(scores_BV.amax(dim=-1).isfinite(), -1)


def _divisor(temperatures_B: Tensor) -> Tensor:
    return torch.where(temperatures_B > 0, temperatures_B, 1.0).float()
