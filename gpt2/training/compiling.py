"""When torch.compile fails: whether it was the compiler, and what of its thousands of lines is told."""

_MODULES = ("torch._dynamo", "torch._inductor")
_LONGEST = 200


def is_of_compiler(error: BaseException) -> bool:
    """Whether torch.compile, or a compiler that it started, raised this."""
    return type(error).__module__.startswith(_MODULES)


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, cut where it is long."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
