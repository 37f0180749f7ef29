"""How far a kernel is, in multiplications done of those that it will take.

From chunks differentiated and products made to one number that grows evenly with time, so that what
remains can be told.
"""

from collections.abc import Callable

from kernel.engine.plan import Pass, Plan, Problem

Report = Callable[[float, float], None]
# A multiplication of a layer takes as long as so many of a large matrix product.
_SLOWER = 2.0


class Progress:
    """Adds up the work of a plan and passes it on."""

    def __init__(self, problem: Problem, plan: Plan, report: Report | None):
        """Nothing is done yet."""
        self._problem, self._report = problem, report
        self._total = _SLOWER * (plan.forward_work + plan.forming_work) + plan.contracting_work
        self._done = 0.0

    def formed(self, one: Pass, images: int) -> None:
        """So many images were differentiated in a pass."""
        self._add(_SLOWER * images * (self._problem.network * (1 + 2 * one.width) + one.forming))

    def contracted(self, one: Pass, images: float) -> None:
        """The anchors met so many images in a pass."""
        square = self._problem.directions.square
        self._add(images * self._problem.anchors * one.contracting(square))

    def _add(self, work: float) -> None:
        self._done += work
        if self._report is not None:
            self._report(min(self._done, self._total), self._total)
