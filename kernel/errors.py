"""What the kernel side refuses, and why."""


class KernelError(ValueError):
    """A kernel that cannot be computed or used: shapes, memory, numbers that are not finite."""


class SingularKernelError(KernelError):
    """A labelled block that has no Cholesky factor, even with the largest jitter."""
