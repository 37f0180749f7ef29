"""Chunks in several threads, handed over in their order.

From work on numbered places to its results one by one. XLA on a CPU leaves cores idle while it
forms gradients image by image, so the images that are differentiated at a time are shared out, and
each core goes through its share by itself.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from kernel.engine.devices import together
from kernel.products import cores

_Result = TypeVar("_Result")


def shared(chunk: int) -> tuple[int, int]:
    """How many threads go through a chunk of images, and how many of them each takes.

    A device that differentiates them together takes them all.
    """
    threads = 1 if together() else min(cores(), chunk)
    return threads, -(-chunk // threads)


@contextmanager
def in_order(
    work: Callable[[int], _Result],
    places: Iterable[int],
    threads: int,
    compiled: bool = False,
) -> Iterator[Iterator[tuple[int, _Result]]]:
    """Each place with the work done on it, in the order of the places.

    The first is worked on alone, so that what it compiles is compiled once. Besides what was handed
    over last, so many results as there are threads exist or are being made, and one more. Leaving
    the context early waits for the work that has begun, and no more is begun.

    Args:
        work: is called from several threads.
        places: what it is called with.
        threads: how many; 1 does everything in the caller's own.
        compiled: there is nothing left to compile, so all begin at once.

    Raises:
        Exception: what the work raised, at its place in the order.
    """
    if threads == 1:
        yield ((place, work(place)) for place in places)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield _handed_over(work, iter(places), threads, pool, compiled)
    finally:
        pool.shutdown(cancel_futures=True)


def _handed_over(
    work: Callable[[int], _Result],
    places: Iterator[int],
    threads: int,
    pool: ThreadPoolExecutor,
    compiled: bool,
) -> Iterator[tuple[int, _Result]]:
    if not compiled:
        for place in places:
            yield place, work(place)
            break
    begun: deque[tuple[int, Future[_Result]]] = deque()
    for place in places:
        begun.append((place, pool.submit(work, place)))
        if len(begun) > threads:  # one is ready by the time the next is asked for
            first, future = begun.popleft()
            yield first, future.result()
    for place, future in begun:
        yield place, future.result()
