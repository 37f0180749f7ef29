"""What the bridge refuses, and why."""


class BridgeError(ValueError):
    """A network or a weight file that cannot cross from PyTorch to JAX."""


class ParityError(BridgeError):
    """PyTorch and the JAX mirror disagree; the message names the first layer that does."""
