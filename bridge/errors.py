"""Exceptions of the bridge."""


class BridgeError(ValueError):
    """A network or a weight file that cannot cross from PyTorch to JAX."""


class ExportError(BridgeError):
    """`torch.export` refuses the module as such, so that another route may still take it.

    Not raised for what no route may take: randomness, batch statistics, a changed buffer, a branch
    on the values of the images, one batch size only; nor for an operator without a row.
    """


class ParityError(BridgeError):
    """PyTorch and the JAX mirror disagree; the message names the first layer that does."""


class BatchSizeError(BridgeError):
    """A network whose forward takes the size of its batch as a plain number."""
