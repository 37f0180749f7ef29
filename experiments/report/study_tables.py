"""Results of a study → every table that its page shows, as numbers.

The statistics are those of `experiments.statistics`; here is only which runs go into which table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from experiments.report.results import Results
from experiments.statistics.friedman import Friedman, friedman, post_hoc
from experiments.statistics.judgement import Judgement, judge
from experiments.statistics.outcomes import REFERENCE, blocks, finished, having
from experiments.statistics.saving import costs, labels_saved, saving
from experiments.statistics.tables import own_models, summary
from pipelines.errors import PipelineError


@dataclass(frozen=True)
class Ranking:
    """Several arms compared at once, over the subjects that have all of them.

    Attributes:
        subjects: whose runs are compared.
        arms: what is compared.
        found: Friedman's test; None where there are too few complete blocks.
        why: the reason for that; empty otherwise.
        pairs: every pair of arms, by the same runs.
    """

    subjects: tuple[str, ...]
    arms: tuple[str, ...]
    found: Friedman | None
    why: str
    pairs: pd.DataFrame


@dataclass(frozen=True)
class Tables:
    """What a study's page shows of its runs, complete ones alone.

    Attributes:
        judgements: of the study's claims.
        curves: rounds of the runs that are done.
        paired: the same, with an arm and the random choice that it is compared with under the names
            that differences are told by; see `paired`.
        summary: of `experiments.statistics.tables.summary`, of `paired`.
        rankings: one for each set of subjects with the same arms, three or more.
        saving: of `experiments.statistics.saving.saving`.
        costs: of `experiments.statistics.saving.costs`.
        models: of `experiments.statistics.tables.own_models`.
    """

    judgements: tuple[Judgement, ...]
    curves: pd.DataFrame
    paired: pd.DataFrame
    summary: pd.DataFrame
    rankings: tuple[Ranking, ...]
    saving: pd.DataFrame
    costs: pd.DataFrame
    models: pd.DataFrame


def tables(found: Results) -> Tables:
    """All tables of a study.

    Raises:
        PipelineError: a claim names what cannot be there, or takes a round twice.
    """
    curves = finished(found.curves, found.trials)
    matched = paired(curves)
    return Tables(
        judgements=judge(found.study.claims_of(found.size), found),
        curves=curves,
        paired=matched,
        summary=summary(matched),
        rankings=tuple(_rankings(curves)),
        saving=saving(labels_saved(matched)),
        costs=costs(matched),
        models=own_models(matched),
    )


def paired(curves: pd.DataFrame) -> pd.DataFrame:
    """Runs with each arm beside the random choice that shares its settings.

    Where a subject has the arms "dynamical, R = 4" and "random, R = 4" they become "dynamical" and
    "random" of the subject "…, R = 4": differences from random are between runs that differ in
    the strategy alone. Other arms stay as they are, to be compared with the arm `random`.
    """
    arms = curves.groupby("subject")["arm"].agg(set).to_dict()
    rows = []
    for subject, arm in zip(curves["subject"], curves["arm"], strict=True):
        name, comma, suffix = str(arm).partition(", ")
        apart = comma and f"{REFERENCE}, {suffix}" in arms[subject]
        rows.append((f"{subject}, {suffix}", name) if apart else (subject, arm))
    made = pd.DataFrame(rows, columns=["subject", "arm"], index=curves.index)
    return curves.assign(subject=made["subject"], arm=made["arm"])


def _rankings(curves: pd.DataFrame) -> list[Ranking]:
    together: dict[tuple[str, ...], list[str]] = {}
    for subject in dict.fromkeys(curves["subject"]):
        arms = tuple(dict.fromkeys(having(curves, subject=[subject])["arm"]))
        alike = next((own for own in together if set(own) == set(arms)), arms)
        together.setdefault(alike, []).append(subject)
    return [_ranking(curves, of, arms) for arms, of in together.items() if len(arms) > 2]


def _ranking(curves: pd.DataFrame, subjects: Sequence[str], arms: tuple[str, ...]) -> Ranking:
    table = blocks(curves, arms=arms, subjects=subjects)
    found, why = None, ""
    try:
        found = friedman(table)
    except PipelineError as error:
        why = str(error)
    return Ranking(tuple(subjects), arms, found, why, post_hoc(table))
