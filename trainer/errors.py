"""What a user did that the trainer cannot go on with; every message says what to do."""


class TrainerError(ValueError):
    """A wrong value given to the trainer."""


class UnknownNameError(TrainerError):
    """A name that is in none of the tables."""


class DataError(TrainerError):
    """Images, labels or files that cannot be used."""


class NetworkError(TrainerError):
    """A network that cannot be built or does not map images to logits."""


class FitError(TrainerError):
    """Training that cannot go on, such as a loss that is no longer finite."""
