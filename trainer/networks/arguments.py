"""Checks of the arguments that networks take."""

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
