"""The commands of the installed package, `sluice-convert` and `sluice-verify`. In a checkout, tools/ has them."""

from .cli import run_command


def convert() -> int:
    """What tools/convert_imagenet.py does. Returns the exit code."""
    from .conversion.convert import convert
    from .conversion.settings import ConvertSettings

    return run_command(convert, ConvertSettings)


def verify() -> int:
    """What tools/verify_dataset.py does. Returns the exit code."""
    from .verification.settings import VerifySettings
    from .verification.verify import verify

    return run_command(verify, VerifySettings)
