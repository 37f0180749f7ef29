"""Results of the study of kernel kinds: the file of its runs, and tables in Markdown.

A run is one network, data set and seed. Means are over runs, intervals Student's t at 95%, and
differences are paired by run.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.measuring import machine, markdown
from kernel.options import REFERENCES

KINDS = (
    "single",
    "sum",
    "rademacher(1)",
    "rademacher(2)",
    "rademacher(4)",
    "rademacher(8)",
    "trace",
)
NO_KERNEL = "no kernel"
# what each pair decides: a kind, and the one that it is compared with
PAIRS = (
    ("sum", "single"),
    ("rademacher(1)", "single"),
    ("rademacher(1)", "sum"),
    ("rademacher(4)", "rademacher(1)"),
    ("trace", "rademacher(1)"),
    ("trace", "single"),
    ("single", NO_KERNEL),
    ("rademacher(1)", NO_KERNEL),
)
STATES = ("first weights", "trained")
# a data frame: the stubs of pandas do not know its columns
Frame = Any


def read(path: Path | None) -> list[dict[str, Any]]:
    """The runs in a file of results; none without one."""
    return json.loads(path.read_text("utf-8"))["runs"] if path and path.exists() else []


def write(path: Path | None, runs: list[dict[str, Any]]) -> None:
    """The file of results, one line a run; nothing without a path."""
    if path is None:
        return
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs)
    path.write_text(f'{{"machine": {json.dumps(machine())},\n"runs": [\n{lines}\n]}}\n', "utf-8")


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and half the 95% interval of Student's t, which is not a number for one value."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * error)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Holm's correction: m − i times the i-th smallest of m, at most 1, never falling with i."""
    order = np.argsort(probabilities)
    corrected = np.empty(len(probabilities))
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * probabilities[place]))
        corrected[place] = largest
    return corrected.tolist()


def frame(runs: list[dict[str, Any]]) -> Frame:
    """One line a run, state, kind, sketch and reference; percentages of candidates for counts."""
    lines = []
    for run in runs:
        about = {"setting": setting(run), "network": run["network"], "seed": run["seed"]}
        about["run"] = f"{about['setting']} {run['seed']}"
        about["exact"] = _is_exact(run)
        for row in run["rows"]:
            line = {**about, **{k: v for k, v in row.items() if " top " not in k}, **about}
            counts = [int(key.partition(" top ")[2]) for key in row if " top " in key]
            line["first class"] = row["zeros"] / min(counts)
            for key, value in row.items():
                if " top " in key:
                    against, _, count = key.partition(" top ")
                    line[f"{against} top {int(count) / run['candidates']:.0%}"] = value
            lines.append(line)
    table: Frame = pd.DataFrame(lines)
    return table


def _is_exact(run: dict[str, Any]) -> bool:
    """Whether the `full` kernel was of the gradients themselves: once it could be of a sketch."""
    return all(row.get("exact", True) for row in run["rows"])


def setting(run: dict[str, Any]) -> str:
    """A network and its data, as tables and pictures call them."""
    name = run["network"].replace(",widen=", "-")
    return f"{name}, {run['dataset']} {run['side']}×{run['side']}"


def tables(runs: list[dict[str, Any]]) -> str:
    """All tables, in Markdown."""
    if not runs:
        return "nothing was measured"
    table = frame(runs)
    exact = table[table.sketch.isna()]
    parts = ["What was trained", _trained(runs)]
    for reference in REFERENCES:
        for state in STATES:
            parts += [f"Spearman with full, reference {reference}, {state}"]
            parts += [_by_setting(at(exact, state, reference))]
    parts += ["Top overlap with full, over all runs", _overlaps(exact)]
    parts += ["Differences of Spearman with full, trained", _differences(exact)]
    parts += ["Sketches, trained", _sketches(table)]
    parts += ["Classes of the highest 5%, trained", _classes(exact)]
    return "\n\n".join(parts)


def at(table: Frame, state: str, reference: str) -> Frame:
    """The lines of one state and reference."""
    return table[(table.state == state) & (table.reference == reference)]


def _shown(values: Frame, sign: str = "") -> str:
    mean, half = mean_interval(values)
    return f"{mean:{sign}.2f}" if np.isnan(half) else f"{mean:{sign}.2f} ± {half:.2f}"


def _trained(runs: list[dict[str, Any]]) -> str:
    rows = []
    for name in dict.fromkeys(map(setting, runs)):
        group = [run for run in runs if setting(run) == name]
        first, n = group[0], len(group)
        rows.append(
            (
                name,
                f"{first['parameters']:,}",
                f"{first['labelled']} / {first['candidates']}",
                n,
                "exact" if _is_exact(first) else "sketched",
                f"{first['optimiser']}, {first['min_steps']}",
                f"{sum(run['fitted'] for run in group)} of {n}",
                f"{np.mean([run['residual'] for run in group]):.3f}",
                f"{np.mean([run['accuracy'] for run in group]):.2f}",
            )
        )
    head = (
        "setting",
        "P",
        "L / U",
        "seeds",
        "`full`",
        "training, least steps",
        "fitted",
        "residual rms",
    )
    return markdown((*head, "accuracy on U"), rows)


def _by_setting(table: Frame) -> str:
    settings = list(dict.fromkeys(table.setting))
    rows = []
    for kind in (*KINDS, NO_KERNEL):
        own = table[table.kind == kind]
        cells = [_shown(own[own.setting == name]["full spearman"]) for name in settings]
        rows.append((kind, *cells, f"**{_shown(own['full spearman'])}**"))
    return markdown(("kind", *settings, f"all {table.run.nunique()} runs"), rows)


def _overlaps(table: Frame) -> str:
    columns = sorted((c for c in table if c.startswith("full top ")), key=len)
    heads = [(state, reference, column) for state in STATES for reference in REFERENCES
             for column in columns]  # fmt: skip
    rows = [
        (kind, *(_shown(at(table[table.kind == kind], state, reference)[column])
                 for state, reference, column in heads))
        for kind in (*KINDS, NO_KERNEL)
    ]  # fmt: skip
    chance = table[table.kind == "random"]
    rows.append(("by chance", *(f"{chance[column].mean():.2f}" for _, _, column in heads)))
    return markdown(("kind", *(f"{s}, {r}, {c[5:]}" for s, r, c in heads)), rows)


def _chance(values: Frame) -> float:
    """Of a mean so far from 0, by Student's t."""
    found: Any = stats.ttest_1samp(values, 0.0)
    return float(found.pvalue)


def _differences(table: Frame) -> str:
    compared, found = [], []
    for reference in REFERENCES:
        trained = at(table, "trained", reference)
        by_kind = trained.pivot(index="run", columns="kind", values="full spearman")
        compared += [(reference, kind, base) for kind, base in PAIRS]
        found += [by_kind[kind] - by_kind[base] for kind, base in PAIRS]
    chances = holm([_chance(values) if len(values) > 1 else 1.0 for values in found])
    rows = [
        (f"{kind} − {base}", reference, _shown(values, "+"),
         f"{(values > 0).sum()} of {len(values)}", f"{chance:.2g}")
        for (reference, kind, base), values, chance in zip(compared, found, chances, strict=True)
    ]  # fmt: skip
    return markdown(("kinds", "reference", "difference", "higher in", "p (Holm)"), rows)


def _sketches(table: Frame) -> str:
    table = table[(table.state == "trained") & table.exact]
    near = next(c for c in table if c.startswith("own top "))
    rows = []
    for kind in KINDS:
        for size in sorted(table[table.kind == kind].sketch.dropna().unique()):
            cells: list[str] = []
            for reference in REFERENCES:
                own = table[(table.kind == kind) & (table.reference == reference)]
                small, exact = own[own.sketch == size], own[own.sketch.isna()].set_index("run")
                lost = small.set_index("run")["full spearman"] - exact["full spearman"]
                mean, half = mean_interval(small["own spearman"])
                cells += [
                    f"{mean:.3f} ± {half:.3f}",
                    _shown(small[near]),
                    _shown(lost.dropna(), "+"),
                ]
            rows.append((kind, int(size), table[table.sketch == size].run.nunique(), *cells))
    whats = ("Spearman with own exact", near[4:], "change of Spearman with full")
    heads = [f"{reference}: {what}" for reference in REFERENCES for what in whats]
    return markdown(("kind", "k", "runs", *heads), rows)


def _classes(table: Frame) -> str:
    table = table[table.state == "trained"]
    chance = table[table.kind == "random"]
    rows = [("random draw", *([_shown(chance["spread"]), _shown(chance["first class"])] * 2))]
    for kind in ("full", *KINDS, NO_KERNEL):
        own = [at(table[table.kind == kind], "trained", reference) for reference in REFERENCES]
        rows.append((kind, *(_shown(t[c]) for t in own for c in ("spread", "first class"))))
    heads = [f"{r}: {what}" for r in REFERENCES for what in ("entropy, nats", "share of class 0")]
    return markdown(("kind", *heads), rows)
