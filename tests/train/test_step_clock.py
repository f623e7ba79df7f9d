"""Where the time of training steps goes."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.contract import Batch
from train.config import TrainConfig
from train.inputs import open_data
from train.network import build_model
from train.process import Process
from train.session import Session
from train.step_clock import ALL_REDUCE, BACKWARD, DATA, FORWARD, OPTIMIZER, StepClock
from train.world import World


@pytest.fixture
def session(dataset: Path) -> Iterator[Session]:
    config = TrainConfig(
        data=str(dataset), model="torchvision/squeezenet1_1", loader="synthetic", batch_size=4, resolution=32
    )
    process, split = Process(config, World(), torch.device("cpu")), open_data(config, "train")
    with process.open_loader("synthetic", split, training=True) as training:
        yield Session(process, build_model(process, split.classes), training)


def slowly(batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        time.sleep(0.05)
        yield batch


def test_every_phase_is_measured_and_they_sum_to_the_elapsed_time(session: Session) -> None:
    clock = StepClock(session)
    batches = session.training.loader.epoch(0, 32)
    session.train_step(next(batches))
    clock.seconds()
    started = time.perf_counter()
    for batch in clock.timed(batches):
        session.train_step(batch)
    spent = clock.seconds()
    assert sum(spent.values()) == pytest.approx(time.perf_counter() - started, rel=0.02)
    assert min(spent[phase] for phase in (DATA, FORWARD, BACKWARD, OPTIMIZER)) > 0
    assert spent[ALL_REDUCE] == 0


def test_a_slow_loader_is_waited_for(session: Session) -> None:
    clock = StepClock(session)
    steps = 0
    for batch in clock.timed(slowly(session.training.loader.epoch(0, 32))):
        session.train_step(batch)
        steps += 1
    assert clock.seconds()[DATA] >= steps * 0.05


def test_marks_do_not_change_the_training(session: Session, dataset: Path) -> None:
    batch = next(session.training.loader.epoch(0, 32))
    before = [parameter.detach().clone() for parameter in session.model.classifier.parameters()]
    session.train_step(batch)
    plain = [parameter.detach().clone() for parameter in session.model.classifier.parameters()]
    split = session.training.split
    session = Session(session.process, build_model(session.process, split.classes), session.training)
    clock = StepClock(session)
    session.train_step(batch)
    marked = list(session.model.classifier.parameters())
    assert clock.seconds()[FORWARD] > 0
    assert all(torch.equal(one, other) for one, other in zip(plain, marked, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(before, marked, strict=True))
