"""How a run can fail, and what it says then: errors as values, which the loop raises.

Beside them the questions that decide between them: whose error it is. Nothing here saves or stops anything.
"""

import traceback

from gpt2.errors import BadData, Error, Unavailable
from gpt2.training.run import RunFolder

_MODULES = ("torch._dynamo", "torch._inductor")
_LONGEST = 200


def is_of_compiler(error: BaseException) -> bool:
    """Whether torch.compile, or a compiler that it started, raised this."""
    return type(error).__module__.startswith(_MODULES)


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, cut where it is long."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def compiler_failed(folder: RunFolder, saved: int, error: Exception, rank: int) -> Unavailable:
    """The error for a compiler's; all that it said, which may be thousands of lines, is written into the folder."""
    try:
        file = folder.write_compiler("".join(traceback.format_exception(error)), rank)
        kept = f"all that it said is in {file}"
    except Error as unwritten:
        # A full disk, say, must not keep what happened from being told.
        kept = f"the rest could not be kept: {first_line(unwritten).rstrip('.')}"
    done = f"{_saved(saved)}. " if saved else ""
    return Unavailable(
        f"torch.compile failed ({first_line(error)}); {kept}. {done}Without it, slower and to the same end: "
        f"`{folder.command} --no-compile`."
    )


def stopped_in_step(folder: RunFolder, saved: int) -> str:
    """A note for one of several processes that is asked to stop while another, for whom it waits, has gone."""
    return f"stopped in the middle of a step. {_saved(saved)}; go on with: {folder.command}"


def diverged(folder: RunFolder, weights: int, what: str, at: int) -> Error:
    """The error for figures that are not finite. weights: the step whose weights gave them, so a checkpoint of that
    step is none to go on from; at: the step at which they were seen."""
    latest, older = folder.checkpoints.pointed(), folder.checkpoints.before(weights)
    lower = f"lower learning_rate {folder.again}"
    if latest is None:
        advice = f"No checkpoint was written yet; {lower}"
    elif latest == older:
        advice = f"The checkpoint {latest.name} is whole; {lower}"
    elif older is not None:
        pointer = folder.path / "latest"
        advice = f"The checkpoint {latest.name} has the same weights: write {older.name} into {pointer}, {lower}"
    else:
        advice = (
            f"The checkpoint {latest.name} has the same weights, and there is none before it: start anew with a "
            "lower learning_rate"
        )
    return Error(f"At step {at} {what}. {advice}.")


def lost(folder: RunFolder, saved: int, what: str) -> BadData:
    """The error for data that went away, or was damaged, in mid-run."""
    on = "go on" if saved else "begin again"
    return BadData(f"{what} {_saved(saved)}; restore the file and {on} with `{folder.command}`.")


def _saved(step: int) -> str:
    return f"Step {step} is saved" if step else "No step is saved yet"
