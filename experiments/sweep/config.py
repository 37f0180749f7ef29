"""The settings of a sweep; its command line is made from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.studies.study import SIZES
from experiments.sweep.recorded import ROOT
from pipelines.errors import PipelineError
from trainer.errors import lookup


@dataclass(frozen=True)
class SweepConfig:
    """Carry out the trials of a study that are not on record yet.

    Attributes:
        study: a name of `experiments.studies.STUDIES`, or your own as module:STUDY.
        size: small, which two CPU cores answer within hours, or paper, the paper's own protocol.
        executor: what carries the trials out: here, this process, one after another; processes,
            several on this machine; ray, as many as there is room for on the machines of a cluster.
        workers: how many trials are carried out at once, of executors that can; by default as many
            as there are GPUs, or else half as many as there are cores, here or in the cluster.
        address: of the Ray cluster: auto for the one that this machine belongs to, HOST:PORT, or
            local for one that is made of this machine and ends with the sweep.
        cpus: cores that the ray executor gives to a trial.
        gpus: GPUs that it gives to a trial, or a share of one; by default one, if the device is not
            cpu and a machine of the cluster has any.
        runs: folder of the records; what lies there at any depth is not done again.
        data_dir: folder of the data sets; by default the variable NTK_DATA_DIR, then ./data.
        download: fetch a data set into data_dir when it is not there and can be fetched.
        device: where networks are trained; auto takes a GPU if there is one.
        only: which trials, by patterns such as mnist, mlmoc, mnist/ml*, mnist/*/seed0: a subject,
            an arm, or subject/arm, perhaps with /seedN, in capitals or not; any of them will do.
            None takes all.
        retry: try trials again that failed at an earlier sweep.
        share: train the first network of a seed once, for all trials that begin with it.
        dry_run: tell what there is to do, and stop.
    """

    study: Annotated[str, tyro.conf.Positional]
    size: str = "small"
    executor: str = "here"
    workers: int | None = None
    address: str = "auto"
    cpus: float = 2.0
    gpus: float | None = None
    runs: Path = ROOT
    data_dir: Path | None = None
    download: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    only: tuple[str, ...] = ()
    retry: bool = True
    share: bool = True
    dry_run: bool = False

    def __post_init__(self):
        """Refuse what can be seen to be wrong before anything is read.

        Raises:
            UnknownNameError: a size that is not there.
            PipelineError: a number out of range.
        """
        lookup(dict.fromkeys(SIZES), self.size, "size")
        if self.workers is not None and self.workers < 1:
            raise PipelineError(f"workers must be 1 or more, not {self.workers}.")
