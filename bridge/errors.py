"""Exceptions of the bridge."""


class BridgeError(ValueError):
    """A network or weight file that cannot be mirrored in JAX."""


class ExportError(BridgeError):
    """`torch.export` refuses the module, for a reason that does not rule out another route."""


class ParityError(BridgeError):
    """PyTorch and the JAX mirror disagree; the message names the first layer that does."""


class BatchSizeError(BridgeError):
    """A network whose forward takes the size of its batch as a plain number."""
