"""Failures at a terminal, in plain words and with an exit status."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bridge.errors import BridgeError
from kernel.errors import KernelError
from pipelines.core.errors import PipelineError
from trainer.errors import TrainerError

EXPECTED = (TrainerError, BridgeError, KernelError, PipelineError)
FAILED, INTERRUPTED = 2, 130
GOES_ON = "the same command goes on after the last round shown"


@contextmanager
def plainly(interrupted: str = GOES_ON) -> Iterator[None]:
    """Print a failure in plain words instead of a traceback.

    Exits with status 2 after a failure that has a message, 130 after Ctrl-C. Whatever else is
    raised is a defect and keeps its traceback.
    """
    try:
        yield
    except EXPECTED as error:
        _fail(str(error))
    except OSError as error:
        _fail(_explain(error))
    except KeyboardInterrupt:
        print(f"\ninterrupted; {interrupted}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(FAILED)


def _explain(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full ({error}). Every completed round is on disk: make room and give "
            "the same command again."
        )
    return f"{error}. Completed rounds are on disk: mend this and give the same command again."
