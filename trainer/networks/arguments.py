"""Checks of networks' arguments, and the dropout layer one of them makes."""

from torch import nn

from trainer.errors import NetworkError


def require_counts(network: str, **counts: object) -> None:
    """Refuse whatever is not a whole number of at least 1.

    Raises:
        NetworkError: naming the network, the argument and its value.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise NetworkError(
                f"{network}: {name} is {value!r}; it must be a whole number of at least 1"
            )


def dropout_layer(network: str, rate: object) -> nn.Module | None:
    """A layer of dropout, or none at all for a rate of 0, so that the network is the plain one.

    Raises:
        NetworkError: the rate is no number of at least 0 and below 1.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise NetworkError(
            f"{network}: dropout is {rate!r}; it must be a number of at least 0 and below 1"
        )
    return nn.Dropout(float(rate)) if rate else None
