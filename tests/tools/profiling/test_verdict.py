"""From measurements to limits, verdicts and advice."""

from dataclasses import replace
from typing import Any

import pytest

from tools.bench.report import Rate
from tools.profiling.advice import Advice
from tools.profiling.limit import bounds, limit, predicted_gain
from tools.profiling.loader_parts import LoaderParts
from tools.profiling.profiles import Measured, Profile
from tools.profiling.trials import Trial, Trials
from tools.profiling.verdict import judge


def rate(value: float, spread: float = 0.02) -> Rate:
    return Rate(median=value, low=value * (1 - spread), high=value * (1 + spread))


def measured(value: float, cpu_s: float = 1e-4, spread: float = 0.02) -> Measured:
    return Measured(rate=rate(value, spread), cpu_s=cpu_s, cores_used=cpu_s * value, others_cores=0.0)


PARTS = LoaderParts(images=256, whole_s=1e-3, parts_s={"read": 1e-4, "decode": 7e-4, "resize": 2e-4})


def on_gpu(loader: float, model: float, together: float, spread: float = 0.02, **fields: Any) -> Profile:
    """Eight cores, of which the loader uses seven."""
    settings: dict[str, Any] = {
        "loader": "torch",
        "model": "resnet152",
        "device": "cuda",
        "nproc": 1,
        "workers": 8,
        "batch_size": 64,
        "resolution": 224,
        "cores": 8,
        "memory_bytes": 64 << 30,
        "data_bytes": 1 << 30,
        "step_s": {},
        "windows": 5,
        "transfer": rate(50_000),
        "parts": PARTS,
    }
    return Profile(
        loader_alone=measured(loader, 7 / loader, spread),
        model_alone=measured(model, 1e-5, spread),
        together=measured(together, spread=spread),
        **(settings | fields),
    )


def on_cpu(loader_cpu_s: float, model_cpu_s: float, together: float, **fields: Any) -> Profile:
    """Two cores, both busy."""
    return replace(
        on_gpu(2 / loader_cpu_s, 2 / model_cpu_s, together, device="cpu", cores=2, workers=2, transfer=None),
        loader_alone=measured(2 / loader_cpu_s, loader_cpu_s),
        model_alone=measured(2 / model_cpu_s, model_cpu_s),
        **fields,
    )


def with_one_worker(loader_cpu_s: float, model_cpu_s: float) -> Profile:
    """The loader has one of the two cores."""
    profile = on_cpu(loader_cpu_s, model_cpu_s, 1 / loader_cpu_s, workers=1)
    return replace(profile, loader_alone=measured(1 / loader_cpu_s, loader_cpu_s))


def disturbed(profile: Profile) -> Profile:
    """Other programs took a quarter of the cores while both together were measured."""
    return replace(profile, together=replace(profile.together, others_cores=profile.cores / 4))


SLOW_READS = replace(PARTS, read_wait_s=9e-3)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (on_gpu(2310, 3900, 2300), "data"),
        (on_gpu(9000, 3900, 3850), "compute"),
        (on_gpu(2310, 3900, 2300, transfer=rate(2400)), "transfer"),
        (on_gpu(9000, 3900, 2000), "unexplained"),
        (on_gpu(3900, 4000, 3900), "undecided"),
        (on_gpu(9000, 3900, 3000, spread=0.4), "undecided"),
        (on_gpu(39000, 3900, 3000, spread=0.4), "compute"),
        (on_gpu(39000, 3900, 3000), "unexplained"),
        (on_gpu(9000, 3900, 4500), "compute"),
        (disturbed(on_gpu(4500, 3900, 2500)), "compute"),
        (disturbed(on_gpu(3300, 3900, 2500)), "data"),
        (disturbed(on_gpu(3800, 3900, 2500)), "undecided"),
        (disturbed(on_cpu(1e-3, 2e-3, 400)), "shared cores"),
        (on_cpu(1e-3, 1e-1, 2 / 1.01e-1), "compute"),
        (on_cpu(1e-2, 1e-4, 2 / 1.01e-2), "data"),
        (on_cpu(1e-3, 2e-3, 2 / 3e-3), "shared cores"),
        (on_cpu(1e-3, 2e-3, 400), "unexplained"),
        (with_one_worker(3e-3, 1e-3), "data"),
    ],
)
def test_the_limit_follows_from_what_was_measured(profile: Profile, expected: str) -> None:
    assert limit(profile) == expected


def test_idle_workers_that_wait_for_reads_are_limited_by_storage() -> None:
    idle = measured(200, 1e-3)
    waiting = replace(on_gpu(200, 3900, 200), loader_alone=idle, parts=SLOW_READS)
    assert limit(waiting) == "storage"
    assert "waits 9 ms for each image to be read, 90% of its time" in str(judge(waiting, []))
    elsewhere = replace(waiting, parts=PARTS)
    assert limit(elsewhere) == "data"
    assert "not for reads but for something outside the measured parts" in str(judge(elsewhere, []))


def test_on_a_cpu_loader_and_model_add_up() -> None:
    profile = on_cpu(1e-3, 3e-3, 500)
    assert bounds(profile) == pytest.approx({"loader": 2000, "model": 2000 / 3, "cores": 500})
    verdict = judge(profile, [])
    assert verdict.predicted == pytest.approx(500)
    assert "The loader takes 25% of the CPU time" in str(verdict)


def test_a_data_bound_verdict_says_how_many_cores_are_needed() -> None:
    text = str(judge(on_gpu(2310, 3900, 2300), []))
    assert text.startswith("data-bound: the loader gives 2,310 img/s, the model takes 3,900; together 2,300")
    assert "Decode is 70% of the loader's 1 ms of CPU time per image." in text
    assert "You need 12 cores per device and have 8." in text


def test_a_compute_bound_verdict_gives_the_headroom() -> None:
    assert "3.3x headroom; it could feed 2 more devices like this one." in str(judge(on_gpu(9900, 3000, 2950), []))
    assert "1.5x headroom." in str(judge(on_gpu(4500, 3000, 2950), []))


def test_an_undecided_verdict_gives_the_quartiles() -> None:
    text = str(judge(on_gpu(3900, 4000, 3900, spread=0.1), []))
    assert "3,900 (3,510 to 4,290)" in text
    assert "4,000 (3,600 to 4,400)" in text


def test_advice_is_what_was_measured_to_be_faster_beyond_the_noise() -> None:
    base = on_gpu(2310, 3900, 2300)
    faster = replace(base, loader="ffcv", together=measured(3800))
    more_workers = replace(base, workers=16, together=measured(3000))
    noisy = replace(base, batch_size=128, together=measured(2500, spread=0.5))
    smaller_images = replace(base, resolution=160, together=measured(9000))
    two_things = replace(base, loader="ffcv", workers=16, together=measured(9000))
    advice = judge(base, [base, faster, more_workers, noisy, smaller_images, two_things]).advice
    assert [str(one) for one in advice] == ["--loader ffcv (measured 1.7x)", "--workers 16 (measured 1.3x)"]


def test_another_loader_is_not_advised_where_the_model_limits_or_the_machine_was_faster() -> None:
    base = on_gpu(9000, 3000, 2950)
    assert judge(base, [replace(base, loader="ffcv", together=measured(5000))]).advice == ()
    slow = on_gpu(2000, 4000, 1990)
    on_a_faster_machine = replace(slow, loader="ffcv", together=measured(3980), model_alone=measured(8000))
    assert judge(slow, [on_a_faster_machine]).advice == ()


def test_an_estimate_counts_only_as_far_as_the_loader_limits() -> None:
    assert predicted_gain(on_gpu(2000, 3000, 2000), 1.2) == pytest.approx(1.2)
    assert predicted_gain(on_gpu(2000, 3000, 2000), 10) == pytest.approx(1.5)
    assert predicted_gain(on_cpu(1e-3, 1e-3, 1000), 2) == pytest.approx(4 / 3)
    converted = (Advice(change="convert with --max-side 400", factor=1.2, how="estimated"),)
    assert "convert with --max-side 400 (estimated 1.2x)" in str(judge(on_gpu(2000, 3000, 2000), [], converted))
    assert "convert" not in str(judge(on_gpu(9000, 3000, 3000), [], converted))


def test_data_larger_than_the_page_cache_should_be_measured_cold() -> None:
    large = on_gpu(2310, 3900, 2300, data_bytes=150 * 10**9)
    assert "The data (150 GB) is larger than the memory (69 GB): measure with --cold." in str(judge(large, []))
    assert "--cold" not in str(judge(replace(large, left_in_cache=0.0), []))
    assert "25% of the files stayed in the page cache" in str(judge(replace(large, left_in_cache=0.25), []))


def test_other_programs_on_the_machine_are_reported() -> None:
    profile = on_gpu(9900, 3000, 2950)
    busy = replace(profile, model_alone=replace(profile.model_alone, others_cores=2.5))
    assert "Other programs took up to 2.5 of the 8 cores during the measurement." in str(judge(busy, []))
    assert "Other programs" not in str(judge(profile, []))
    slowed = replace(busy, together=replace(measured(2000), others_cores=2.5))
    assert limit(slowed) == "compute"
    assert "Together they are 33% slower than predicted, because other programs ran." in str(judge(slowed, []))


def test_with_slow_storage_the_gain_of_memory_is_estimated() -> None:
    profile = replace(on_gpu(200, 3900, 200), loader_alone=measured(200, 1e-3), parts=SLOW_READS)
    assert "files in memory or on faster storage (estimated 10.0x" in str(judge(profile, []))


def test_a_model_that_is_twice_as_fast_elsewhere_was_disturbed_here() -> None:
    quiet, slow = on_gpu(9000, 3000, 2950), replace(on_gpu(9000, 150, 149), loader="ffcv")
    verdict = judge(slow, [quiet, slow])
    assert verdict.limited_by == "disturbed"
    assert "The same model reached 3,000 img/s in another measurement of this profile, 20.0x as much" in str(verdict)
    assert judge(quiet, [quiet, slow]).limited_by == "compute"
    assert judge(on_gpu(9000, 2000, 1990), [quiet]).limited_by == "compute"
    smaller_batches = replace(slow, batch_size=8)
    assert judge(smaller_batches, [quiet]).limited_by == "compute", "other batches may be slower"


def test_a_disturbed_measurement_gives_no_advice_and_is_none() -> None:
    slow_loader = on_gpu(2000, 3900, 1990)
    disturbed_run = replace(slow_loader, loader="ffcv", model_alone=measured(190), together=measured(1990))
    assert judge(slow_loader, [slow_loader, disturbed_run]).advice == ()
    assert judge(disturbed_run, [slow_loader, disturbed_run]).advice == ()


def test_trials_are_advice_or_said_to_be_none() -> None:
    trials = Trials(
        trials=(
            Trial(flag="--amp bf16", ratio=rate(1.8)),
            Trial(flag="--amp fp16", ratio=Rate(median=1.3, low=0.9, high=1.6)),
            Trial(flag="--compile", problem="fails here: no compiler"),
        )
    )
    verdict = judge(on_gpu(9000, 3000, 2950), [], trials=trials)
    text = str(verdict)
    assert [str(one) for one in verdict.advice] == ["--amp bf16 (measured 1.8x)"]
    assert "Measured without a gain beyond the noise: --amp fp16 (1.30x)." in text
    assert "Not measured: --compile (fails here: no compiler)." in text
