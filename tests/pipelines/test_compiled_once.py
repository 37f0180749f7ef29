"""Nothing is compiled after a run's first cycle, whatever the labels, the pool and the weights."""

from jax import monitoring

from pipelines import run
from pipelines.config import RunConfig
from trainer.fit import TrainConfig


def test_only_the_first_cycle_compiles(tmp_path, monkeypatch):
    compiled, after = [], []

    def listen(event: str, duration_secs: float, **details: str | int) -> None:
        if "backend_compile" in event:
            compiled.append(duration_secs)

    append = run.record.append

    def counted(so_far, line):
        after.append(len(compiled))
        return append(so_far, line)

    monkeypatch.setattr(run.record, "append", counted)
    monkeypatch.setattr(run, "keep_compiled", lambda: None)  # nor taken from an earlier run
    monitoring.register_event_duration_secs_listener(listen)
    try:
        run.run(
            RunConfig(
                dataset="digits",
                initial=20,
                query=7,
                subset=130,
                cycles=3,
                network="tests.own_network:make",
                network_args=("hidden=9",),
                train=TrainConfig(epochs=2, min_steps=4, extensions=0),
                run=tmp_path / "run",
            )
        )
    finally:
        monitoring.clear_event_listeners()
    assert after[0] > 0
    assert after[1:] == [after[0]] * 3
