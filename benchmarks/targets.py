"""What was to be reached (see docs/performance.md), and what was, out of the figures."""

from benchmarks.figures import WIDTHS, Figures, median, ratio, title

Line = tuple[str, str, str, bool | None]

_DECODE = {
    "float32": (1.0, "the best peer, 95 % of the memory limit"),
    "bfloat16": (1.2, "1.2 × the best peer"),
    "int8": (1.2, "1.2 × the best peer"),
    "int4": (1.7, "1.7 × llama.cpp's q4_0"),
}


def lines(figures: Figures) -> list[Line]:
    """Work, target, what was reached, and whether that is enough; only what was measured."""
    found = [*_decode(figures), *_prefill(figures), *_streams(figures), *_fresh(figures)]
    return [line for line in found if line[2]]


def _decode(figures: Figures) -> list[Line]:
    answer: list[Line] = []
    for width, (wanted, words) in _DECODE.items():
        ours, best = figures.ours("decode", None, width), figures.best_peer("decode", None, [width])
        if width == "int4":
            rows = figures.rows("decode", None, width)
            best = next((row for row in rows if row["peer"] == "llamacpp" and row["seconds"]), None)
        times = ratio(ours, best)
        if ours is None or best is None or times is None:
            continue
        share = figures.memory_share(ours)
        reached = f"{times:.2f} × {title(best)}" + (f", {share:.0%} of the memory limit" if share else "")
        enough = times >= wanted and (width != "float32" or (share or 0) >= 0.95)
        answer.append((f"decode, {width}", words, reached, enough))
    return answer


def _prefill(figures: Figures) -> list[Line]:
    answer: list[Line] = []
    for case in figures.cases("prefill"):
        # The fastest of ours beside the fastest of theirs, whatever the widths: a user takes the fastest.
        ours, best = (find("prefill", case, WIDTHS) for find in (figures.best_of_ours, figures.best_peer))
        times = ratio(ours, best)
        if ours is None or best is None or times is None:
            continue
        share = figures.matrix_share(ours) or 0.0
        reached = f"{times:.2f} × {title(best)}, {best['width']}; ours {ours['width']}, {share:.0%} of the matrix rate"
        wanted = "1.2 × the best peer, 50 % of the matrix rate"
        answer.append((f"prefill, {case}", wanted, reached, times >= 1.2 and share >= 0.5))
    return answer


def _streams(figures: Figures) -> list[Line]:
    ours, best = (find("streams", None, WIDTHS) for find in (figures.best_of_ours, figures.best_peer))
    times = ratio(ours, best)
    if ours is None or best is None or times is None:
        return []
    reached = f"{times:.2f} × {title(best)}, {best['width']}; ours {ours['width']}"
    return [("32 streams", "1.5 × the best peer", reached, times >= 1.5)]


def _fresh(figures: Figures) -> list[Line]:
    answer: list[Line] = []
    cold = {(row["peer"], row["case"], row["width"]): row for row in figures.rows("cold start") if row["seconds"]}
    theirs = cold.get(("transformers", "first token", "float32"))
    for case in ("first token, Python API", "first token, command line"):
        ours = cold.get(("ours", case, "float32"))
        if ours and theirs:
            share = median(ours) / median(theirs)
            reached = f"{median(ours):.2f} s, {share:.2f} × transformers' {median(theirs):.2f} s"
            answer.append((f"cold start, {case}", "half of transformers' time", reached, share <= 0.5))
    usage = cold.get(("ours", "gpt2 --help", ""))
    if usage:
        answer.append(("gpt2 --help", "0.2 s", f"{median(usage):.2f} s", median(usage) < 0.2))
    int8 = figures.ours("memory", None, "int8")
    if int8:
        megabytes = int8["extra"]["peak"] / 1e6
        answer.append(("memory, int8", "450 MB resident at most", f"{megabytes:.0f} MB", megabytes < 450))
        readings = int8["extra"]["resident_during_calls"]
        growth = (readings[-1] - readings[0]) / 1e6
        calls = int8["extra"]["calls"]
        # What an allocator keeps back moves by a little; a leak of a few KB a call would be more.
        answer.append((f"memory, {calls} calls", "no growth", f"{growth:+.1f} MB after the first tenth", growth < 4))
    for row in figures.rows("largest"):
        if row["seconds"]:
            peak = row["extra"]["first start"]["peak"] / 1e9
            large = figures.memory_share(row | {"shape": "gpt2-xl"}) or 0.0
            small = figures.ours("decode", None, "int8")
            base = figures.memory_share(small) if small else None
            reached = f"{peak:.1f} GB while it packs; {row['rate']:.1f} tokens/s, {large:.0%} of the memory limit"
            reached += f" (124M: {base:.0%})" if base else ""
            enough = peak < 8 and large >= 0.97 * (base or 1)
            answer.append(("1,558M, int8", "8 GB; the 124M's share of the limit", reached, enough))
    return answer
