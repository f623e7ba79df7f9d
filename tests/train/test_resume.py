"""What may differ in a resumed run, and what then follows."""

import dataclasses
import json
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from train.config import TrainConfig
from train.meeting import Meeting
from train.rendezvous import SignedStore, host_store
from train.resume import CHANGEABLE, FIXED, Resumed, adapted, restarted_in
from train.world import World


def checkpoint_of(world_size: int, **settings: Any) -> Resumed:
    config = TrainConfig(**settings)
    global_batch = config.batch_size * config.accumulate * world_size
    return Resumed(Path("a.pt"), {"config": config.as_dict(), "position": {"global_batch": global_batch}})


# Before: processes, batch size, accumulated batches; then: processes and --batch-size; expected batch size and batches.
@pytest.mark.parametrize(
    ("before", "then", "expected"),
    [
        ((8, 128, 1), (4, 128), (128, 2)),
        ((8, 128, 1), (4, 256), (256, 1)),
        ((8, 128, 1), (16, 128), (64, 1)),
        ((8, 128, 1), (1, 128), (128, 8)),
        ((8, 96, 1), (3, 96), (64, 4)),
        ((2, 4, 3), (1, 4), (4, 6)),
        ((1, 8, 2), (2, 8), (8, 1)),
    ],
)
def test_a_world_of_another_size_keeps_the_global_batch(
    before: tuple[int, int, int], then: tuple[int, int], expected: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    resumed = checkpoint_of(before[0], batch_size=before[1], accumulate=before[2])
    config = TrainConfig(batch_size=then[1])
    with caplog.at_level(logging.INFO):
        now = adapted(config, resumed, World(size=then[0]))
    assert (now.batch_size, now.accumulate) == expected
    assert now.batch_size * now.accumulate * then[0] == before[0] * before[1] * before[2]
    assert f"world size {before[0]} -> {then[0]}: {then[0]} x {expected[0]} images x {expected[1]}" in caplog.text


def test_a_world_size_that_does_not_divide_the_global_batch_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"--resume a.pt: its global batch of 1024 cannot be divided among 3 processes"
    ):
        adapted(TrainConfig(), checkpoint_of(8, batch_size=128), World(size=3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "was trained with --seed 0, not 1"),
        ({"model": "alexnet"}, "was trained with --model torchvision/resnet50, not alexnet"),
        ({"batch_size": 64}, "its global batch is 128, not 64; give --batch-size 128"),
        ({"accumulate": 2}, "its global batch is 128, not 256; give --batch-size 128 --accumulate 1"),
    ],
)
def test_another_run_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        adapted(TrainConfig(**changed), checkpoint_of(1), World())


def test_other_settings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    config = TrainConfig(lr=0.2, epochs=100, progressive_resize=("1:64",), workers=7)
    with caplog.at_level(logging.INFO):
        assert adapted(config, checkpoint_of(1), World()) == config
    assert caplog.messages == [
        "resumed with other settings: epochs 90 -> 100, progressive_resize (none) -> 1:64, lr None -> 0.2"
    ]


def test_a_file_without_training_state_is_refused() -> None:
    with pytest.raises(InputError, match="holds no training state to resume from"):
        adapted(TrainConfig(), Resumed(Path("a.pt"), {"config": {}, "model": {}}), World())


HONEST = Path("runs/alexnet-ffcv-1")


@pytest.mark.parametrize(
    ("flags", "stored", "is_accepted"),
    [
        ({"run_dir": Path("a")}, "a", True),
        ({"run_dir": Path("a")}, "b", False),
        ({"run_dir": Path("a")}, str(HONEST), False),
        ({}, str(HONEST), True),
        ({}, "runs", False),
        ({}, "runs/..", False),
        ({}, "runs/a/../../b", False),
        ({}, "/etc", False),
        ({"resume": "c/checkpoints/last.pt"}, "c", True),
        ({"resume": "c/checkpoints/last.pt"}, "d", False),
        ({"resume": "auto", "run_dir": Path("a")}, "a", True),
        ({}, 5, False),
        ({}, "\0", False),
    ],
)  # fmt: skip
def test_a_stranger_does_not_choose_the_directory_after_a_restart(
    flags: dict[str, Any], stored: Any, is_accepted: bool
) -> None:
    """Without a secret, between machines: who reaches the store may write to it."""
    store = host_store("here", "127.0.0.1", 0, 5)
    rounds = SignedStore(store, b"", "meetings/")
    meeting = Meeting(World(), 5, rounds)
    assert restarted_in(TrainConfig(**flags), meeting) is None
    meeting.keep_run_dir(HONEST)
    key = f"directory of {json.dumps(sys.argv)}"
    assert rounds.has(key)
    rounds.set(key, json.dumps(stored))
    if is_accepted:
        assert restarted_in(TrainConfig(**flags), meeting) == Path(stored)
    else:
        with pytest.raises(InputError, match="somebody else writes to the store of its processes") as raised:
            restarted_in(TrainConfig(**flags), meeting)
        assert str(raised.value).isprintable()


ELSEWHERE = (
    "recipe", "config", "endpoint_url", "io_timeout", "cache", "cache_size", "order", "decoder", "workers",
    "num_classes", "pretrained", "finetune", "nproc", "nnodes", "node_rank", "rdzv_endpoint", "rdzv_timeout",
    "max_restarts", "run_dir", "checkpoint_every", "keep_checkpoints", "resume", "evaluate", "analyse", "predictions",
    "print_freq", "log", "log_format", "log_case", "log_indices", "performance", "profile_steps",
)  # fmt: skip
"""Settings of where and how a run is started, stored and watched, or that are checked elsewhere."""


def test_it_is_decided_of_each_setting_whether_it_may_differ() -> None:
    """A new one that is forgotten would change a resumed run without a word."""
    settings = [field.name for field in dataclasses.fields(TrainConfig)]
    assert Counter(settings) == Counter([*FIXED, *CHANGEABLE, *ELSEWHERE])


def test_another_resize_of_the_images_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        adapted(TrainConfig(interpolation="bicubic"), checkpoint_of(1), World())
    assert caplog.messages == ["resumed with other settings: interpolation None -> bicubic"]
