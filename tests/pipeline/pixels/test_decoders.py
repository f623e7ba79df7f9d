"""Which decoder is used."""

import pytest

from pipeline.errors import InputError
from pipeline.pixels import decoders
from pipeline.pixels.jpeg.processor import IS_X86, VECTORS

pytestmark = pytest.mark.usefixtures("decoder_not_chosen")


def test_turbojpeg_can_be_asked_for() -> None:
    assert not decoders.uses_own("turbojpeg")


def test_the_environment_can_ask_for_turbojpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_DECODER", "turbojpeg")
    assert decoders.choose("auto") == (False, "turbojpeg: as asked for")


def test_an_unknown_decoder_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_DECODER", "nvjpeg")
    with pytest.raises(InputError, match="SLUICE_DECODER=nvjpeg: there is auto and turbojpeg"):
        decoders.choose("auto")


@pytest.mark.skipif(not IS_X86, reason="elsewhere it is measured")
def test_measured_processors_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(decoders, "measure")
    assert decoders.choose("auto") == (True, f"Sluice's own for tiles, with {VECTORS} vectors")


@pytest.mark.parametrize(("own", "turbojpeg"), [(2e-4, 3e-4), (3e-4, 2e-4)])
def test_other_processors_use_what_is_faster(monkeypatch: pytest.MonkeyPatch, own: float, turbojpeg: float) -> None:
    monkeypatch.setattr(decoders, "IS_X86", False)
    monkeypatch.setattr(decoders, "measure", lambda: (own, turbojpeg))
    is_own, why = decoders.choose("auto")
    assert is_own == (own < turbojpeg)
    assert f"{own * 1e6:.0f} µs with Sluice's" in why


def test_both_decoders_are_measured_on_the_same_crop() -> None:
    own, turbojpeg = decoders.measure()
    assert 2e-5 < own < 0.1
    assert 2e-5 < turbojpeg < 0.1
