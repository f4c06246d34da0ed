"""What a run would take on GPUs that are not here: memory, communication, hours and cost, from a stated model.

Arithmetic alone: data sheets, the share of the peak that published runs reached, and a few assumptions that are told
with every plan. What can be tried on this machine is tried by `training.probe` instead.
"""

import math
from dataclasses import dataclass

from gpt2.config import GPT2Config
from gpt2.errors import BadOption
from gpt2.training.devices import Device
from gpt2.training.flops import block_matrices, flops_per_token
from gpt2.training.memory import Need, largest_micro_batch, need
from gpt2.training.options import TrainingOptions

# Where nothing was published for a kind of GPU: what careful programs reach on most.
_USUAL_MFU = 0.40
# Of a GPU's memory, for PyTorch's tensors: the rest goes to the CUDA context, NCCL's buffers and fragments.
_USABLE = 0.90
# Of what the data sheets say, for collectives of hundreds of megabytes; and of memory bandwidth, for the optimiser.
_LINK_SHARE, _BANDWIDTH_SHARE = 0.70, 0.80


@dataclass(frozen=True, slots=True)
class Cluster:
    """GPUs of one kind: how many, how many of them in one machine, and the network between machines.

    network: bytes/s one way for each GPU, 50e9 being 400 Gbit/s. mfu: None for what published runs reached.
    price: dollars an hour for one GPU, None for the assumption of `training.devices`.
    """

    device: Device
    gpus: int = 8
    per_machine: int = 8
    network: float = 50e9
    mfu: float | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.per_machine < 1:
            raise BadOption(f"A plan needs at least one GPU; gpus is {self.gpus}.")
        if self.gpus > self.per_machine and self.gpus % self.per_machine:
            raise BadOption(f"{self.gpus} GPUs are no whole number of machines with {self.per_machine} each.")

    @property
    def link(self) -> float:
        """Bytes/s one way that each GPU can keep up in a collective over all of them: the narrowest place's."""
        narrowest = self.device.link
        if self.gpus > self.per_machine:
            # A ring enters and leaves each machine once, over the network of all of its GPUs.
            narrowest = min(narrowest, self.network * self.per_machine)
        return _LINK_SHARE * narrowest

    def reached(self, parameters: int) -> tuple[float, str]:
        """The share of the peak to plan with for a model of this size, and where it comes from."""
        if self.mfu is not None:
            return self.mfu, "given"
        known = self.device.mfu
        if not known:
            return _USUAL_MFU, f"assumed: nothing published for {self.device.title}"
        millions = parameters / 1e6
        below = max((run for run in known if run[0] <= millions), default=known[0])
        above = min((run for run in known if run[0] >= millions), default=known[-1])
        place = 0.0 if above == below else math.log(millions / below[0]) / math.log(above[0] / below[0])
        runs = " and ".join(f"{size:,}M" for size in dict.fromkeys((below[0], above[0])))
        return below[1] + place * (above[1] - below[1]), f"what llm.c's published runs of {runs} reached"


@dataclass(frozen=True, slots=True)
class Plan:
    """A run on a cluster, one way of sharing it out.

    need: bytes of each GPU. rows: sequences of a pass on each. sent: bytes that each GPU sends in a step.
    Seconds of a step: compute, the optimiser's update, and what of the communication hides behind neither.
    """

    parallel: str
    need: Need
    fits: bool
    rows: int
    passes: int
    sent: float
    compute_seconds: float
    update_seconds: float
    exposed_seconds: float
    tokens_per_step: int
    steps: int
    gpus: int
    price: float

    @property
    def step_seconds(self) -> float:
        """Seconds of one optimiser step."""
        return self.compute_seconds + self.update_seconds + self.exposed_seconds

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs together."""
        return self.tokens_per_step / self.step_seconds

    @property
    def hours(self) -> float:
        """Of the whole run, without evaluation, checkpoints and waiting."""
        return self.steps * self.step_seconds / 3600

    @property
    def cost(self) -> float:
        """Dollars at the cluster's price."""
        return self.hours * self.gpus * self.price


def plan(options: TrainingOptions, vocab_size: int, cluster: Cluster, parallel: str) -> Plan:
    """A run on a cluster. parallel: "ddp" or "fsdp".

    Without a micro-batch in the options, the largest that fits is taken. Raises BadOption for a batch that the GPUs
    cannot share evenly.
    """
    share = options.share(cluster.gpus, "GPUs")
    config, window, device = options.model_config(vocab_size), options.context, cluster.device
    budget = _USABLE * device.memory
    fitting = largest_micro_batch(options, vocab_size, window, budget, cluster.gpus, parallel)
    rows = math.gcd(share, options.micro_batch_size) if options.micro_batch_size else max(fitting, 1)
    needed = need(options.with_rows(rows, cluster.gpus), vocab_size, window, cluster.gpus, parallel)
    passes = share // rows
    tokens = options.batch_size * window
    mfu, _ = cluster.reached(config.parameters)
    compute = tokens * flops_per_token(config, window) / (cluster.gpus * device.peak * mfu)
    first, each, hidden_behind = _communication(options, config, cluster.gpus, parallel, compute / passes)
    exposed = max(0.0, first / cluster.link - hidden_behind) + passes * max(0.0, each / cluster.link - compute / passes)
    return Plan(
        parallel=parallel,
        need=needed,
        fits=needed.total <= budget,
        rows=rows,
        passes=passes,
        sent=first + passes * each,
        compute_seconds=compute,
        update_seconds=_update(options, config, cluster, parallel, mfu),
        exposed_seconds=exposed,
        tokens_per_step=tokens,
        steps=options.steps,
        gpus=cluster.gpus,
        price=device.price if cluster.price is None else cluster.price,
    )


def assumptions(cluster: Cluster, parameters: int) -> list[str]:
    """What a plan rests on, in sentences."""
    device = cluster.device
    mfu, source = cluster.reached(parameters)
    said = [
        f"{device.title}: {device.peak / 1e12:,.4g} TFLOP/s, {device.memory / 1e9:,.0f} GB ({device.source})",
        f"{mfu:.0%} of that peak while computing ({source})",
        f"{_USABLE:.0%} of the memory usable, {_LINK_SHARE:.0%} of the links' rates reached, "
        f"{_BANDWIDTH_SHARE:.0%} of the memory's by the optimiser",
    ]
    if cluster.gpus > cluster.per_machine:
        said.append(
            f"machines of {cluster.per_machine} GPUs, {cluster.network * 8 / 1e9:,.0f} Gbit/s from each to the others"
        )
    price = device.price if cluster.price is None else cluster.price
    said.append(f"${price:.2f} a GPU-hour ({'an assumption' if cluster.price is None else 'given'})")
    return said


def _communication(
    options: TrainingOptions, config: GPT2Config, gpus: int, parallel: str, pass_seconds: float
) -> tuple[float, float, float]:
    """Bytes that a GPU sends once a step and in each pass, and seconds of computing that hide the former.

    DDP sums float32 gradients over all GPUs in the way back of the last pass, two thirds of it. FSDP gathers the
    weights of every block in both ways of every pass, in the width that it computes in, and the embeddings once, in
    float32; it sums and shares out float32 gradients. Muon's finished updates are put together in that width.
    """
    if gpus == 1:
        return 0.0, 0.0, 0.0
    ring = (gpus - 1) / gpus
    width = 2 if options.dtype == "bfloat16" else 4
    updates = block_matrices(config) * width if options.optimizer == "muon" else 0
    if parallel == "ddp":
        return ring * (2 * 4 * config.parameters + updates), 0.0, 2 / 3 * pass_seconds
    root = (config.vocab_size + config.n_positions) * config.n_embd
    each = 2 * width * (config.parameters - root) + 4 * root + 4 * config.parameters
    # To whoever works on a matrix, and back: each GPU its share.
    return ring * 2 * updates / gpus, ring * each, 0.0


def _update(options: TrainingOptions, config: GPT2Config, cluster: Cluster, parallel: str, mfu: float) -> float:
    """Seconds of the optimiser: AdamW reads and writes its state; Muon multiplies each matrix with itself besides."""
    device = cluster.device
    mine = config.parameters / (cluster.gpus if parallel == "fsdp" else 1)
    # Weight, gradient and two moments read, three written; the gradients are zeroed and the narrow copy is made anew.
    seconds = 36 * mine / (_BANDWIDTH_SHARE * device.bandwidth)
    if options.optimizer == "muon":
        width = config.n_embd
        # Five Newton-Schulz steps, of three products each, on query, key, value, projection and both of the MLP.
        block = 4 * 6 * width**3 + 2 * (4 * width**2 * config.mlp_width + 2 * width**3)
        seconds += 5 * config.n_layer * block / (cluster.gpus * device.peak * mfu)
    return seconds
