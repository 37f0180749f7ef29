"""The settings of LL4AL's loss prediction module, checked when they are made."""

from dataclasses import dataclass

from pipelines.errors import PipelineError


@dataclass(frozen=True)
class LL4ALConfig:
    """How the loss prediction module of ll4al is made and trained along with the network.

    Attributes:
        taps: modules of the network whose outputs it reads, by the names that named_modules gives;
            none takes the stages of the papers' networks, and of your own network the last module
            at each resolution.
        width: to which each of these outputs, averaged over positions, is brought.
        margin: of the ranking loss.
        weight: of the ranking loss beside the network's own; with 0 the network is trained as if
            alone, and the module learns nothing.
        detach: part of the schedule's epochs after which the network no longer feels it.
        learning_rate: the highest of the module's own, never above the network's. Where it is too
            high all predictions become the same, and rank_correlation null in the record.
        felt: share of the module's gradient at the feature maps that enters the network; None is
            all of it with cross-entropy, and 1/C with l2, which is a mean over C classes.
    """

    taps: tuple[str, ...] = ()
    width: int = 128
    margin: float = 1.0
    weight: float = 1.0
    detach: float = 0.6
    learning_rate: float = 0.01
    felt: float | None = None

    def __post_init__(self):
        """Refuse what no module can be trained with.

        Raises:
            PipelineError: a number out of range, or a tap named twice.
        """
        if len(set(self.taps)) < len(self.taps):
            raise PipelineError(f"ll4al.taps names something twice: {', '.join(self.taps)}.")
        if self.width < 1:
            raise PipelineError(f"ll4al.width must be 1 or more, not {self.width}.")
        for name in ("margin", "weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise PipelineError(f"ll4al.{name} must be 0 or more, not {getattr(self, name)}.")
        if not 0 < self.learning_rate < float("inf"):
            raise PipelineError(f"ll4al.learning_rate must be above 0, not {self.learning_rate}.")
        for name in ("detach", "felt"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise PipelineError(f"ll4al.{name} must be from 0 to 1, not {value}.")

    def share(self, loss: str, classes: int) -> float:
        """Of the gradient that enters the network, the default filled in."""
        if self.felt is not None:
            return self.felt
        return 1 / classes if loss == "l2" else 1.0
