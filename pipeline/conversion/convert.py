"""Convert ImageNet to WebDataset shards and FFCV `.beton` files.

    python tools/convert_imagenet.py --src data/imagenet --dst data/shards
    python tools/convert_imagenet.py --src ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar ILSVRC2012_devkit_t12.tar.gz

`--src` is what you have: ImageNet's folders, the official archives (read in place), Kaggle's download, or WebDataset
shards; or a folder with any of these, also in a bucket. Labels of a flat validation set are found next to it, or given
with `--val-labels`. Every image is decoded once, so that a bad one is found now and not in training.

An interrupted conversion continues when the same command is started again, and ends with the same bytes. A finished
one reports that it is complete.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError, one_line
from ..storage.beton import head_bytes
from ..storage.files import complete_or_absent
from ..storage.manifest import MANIFEST
from ..storage.remote.address import address_of
from ..storage.remote.paths import listed_below, traffic
from ..storage.remote.settings import Access
from ..storage.remote.traffic import fetched_in_words
from .estimate import Estimate, Sample, estimate, sample_images
from .finding import SPLITS, Source, SourceFlags, open_source
from .finishing import FINISHING, finish, finished_counts
from .planning import plan_conversion
from .progress import ConversionProgress
from .settings import ConvertSettings
from .target import check_outside, check_target, is_complete
from .uploading import local_settings, uploading
from .work import ConversionPlan, Part, Workspace
from .writing import BadImages, SplitShare, write_share

log = logging.getLogger(__name__)

BAD_LIST = "bad-images.txt"


def convert(settings: ConvertSettings) -> dict[str, Any]:
    """Find, check and write the images; `dataset.json` last. Returns the result of the command, also if the same
    conversion has been finished before.

    Raises InputError for a source, a target or images that cannot be used.
    """
    started = time.monotonic()
    if address := address_of(settings.dst):
        counts = convert_into_bucket(local_settings(settings, address), address)
    else:
        counts = convert_into(Workspace(settings.dst), settings)
    seconds = round(time.monotonic() - started, 1)
    return {"train": 0, "val": 0, **counts, "seconds": seconds}


def convert_into(workspace: Workspace, settings: ConvertSettings) -> dict[str, Any]:
    """Convert what has not been converted before. Returns the counts."""
    if is_complete(workspace, settings):
        log.info("--dst %s: already complete; the source was not read again", settings.dst)
        return finished_counts(settings.dst)
    if settings.merge:
        return merge(settings)
    if settings.dry_run:
        return only_estimate(workspace, settings, find_source(settings))
    return convert_source(workspace, settings, find_source(settings))


def convert_into_bucket(local: ConvertSettings, address: str) -> dict[str, Any]:
    """Convert with the settings of the local part, and upload."""
    if local.dry_run:
        return convert_into(Workspace(local.dst), local)
    with uploading(local, address) as workspace:
        return convert_into(workspace, local)


def find_source(settings: ConvertSettings) -> Source:
    """List the images of the source, and their classes."""
    splits = tuple(split for split in SPLITS if split in settings.splits)
    access = Access(settings.endpoint_url, settings.io_timeout)
    with _traffic_logged("list of images"):
        src = tuple(located(path, access) for path in settings.src)
        labels = located(settings.val_labels, access) if settings.val_labels else None
        source = open_source(SourceFlags(src, splits, labels, settings.classes, settings.seed))
    check_outside(settings.dst, source)
    return source


def located(path: Path, access: Access) -> Path:
    """A path of the source; if it is an address, what is there is listed. Raises InputError and StorageError."""
    address = address_of(path)
    return listed_below(address, access) if address else path


@contextlib.contextmanager
def _traffic_logged(what: str) -> Iterator[None]:
    """Say what the block fetches of a source in a bucket."""
    began = time.monotonic()
    traffic.take()
    yield
    if (counts := traffic.take())["bytes"]:
        log.info("%s: %s", what, fetched_in_words(counts, time.monotonic() - began))


def only_estimate(workspace: Workspace, settings: ConvertSettings, source: Source) -> dict[str, Any]:
    """Say what a conversion would take. Writes nothing."""
    check_target(workspace, settings)
    samples = sample_splits(settings, source)
    return estimated(workspace, settings, source, plan_conversion(settings, source, samples), samples).as_result()


def sample_splits(settings: ConvertSettings, source: Source) -> dict[str, Sample]:
    """A sample of each split."""
    with _traffic_logged("sample"):
        return {split: sample_images(images, settings) for split, images in source.splits.items()}


def estimated(
    workspace: Workspace, settings: ConvertSettings, source: Source, plan: ConversionPlan, samples: dict[str, Sample]
) -> Estimate:
    """What is still to be written of this part; it is logged."""
    shards = plan.shards_of(settings.this_part)
    remaining = [shard for shard in shards if not workspace.record_path(shard).exists()]
    result = estimate(settings, source.splits, plan, samples, remaining)
    result.log(settings.dst)
    return result


def convert_source(workspace: Workspace, settings: ConvertSettings, source: Source) -> dict[str, Any]:
    """Write this machine's part, and finish if it is the only one."""
    part = settings.this_part
    with _writing_errors(settings.dst):
        check_target(workspace, settings)
        workspace.folder.mkdir(parents=True, exist_ok=True)
        with workspace.locked(part.name):
            if not (workspace.folder / FINISHING).exists() and not (settings.dst / MANIFEST).exists():
                samples = sample_splits(settings, source)
                plan = plan_conversion(settings, source, samples)
                begin_or_resume(workspace, part, plan)
                estimated(workspace, settings, source, plan, samples)
                write_part(workspace, settings, source, plan)
            if settings.part:
                return part_counts(workspace, part)
            return finish(workspace)


def merge(settings: ConvertSettings) -> dict[str, Any]:
    """Put the parts together that several machines have written."""
    workspace = Workspace(settings.dst)
    if not workspace.folder.is_dir():
        raise InputError(f"--dst {settings.dst}: no parts in it; write them with --part 1/N to N/N")
    with _writing_errors(settings.dst), contextlib.ExitStack() as locks:
        for part in workspace.parts():
            locks.enter_context(workspace.locked(part.name))
        return finish(workspace)


@contextlib.contextmanager
def _writing_errors(dst: Path) -> Iterator[None]:
    """Report a disk that is full or not writable as bad input."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"--dst {dst}: cannot be written ({error.strerror or error}); fix that and start again to continue"
        ) from None


def begin_or_resume(workspace: Workspace, part: Part, plan: ConversionPlan) -> None:
    """Record what is being converted. Shards that an earlier attempt wrote of another source are not used."""
    begun = workspace.plan(part)
    if begun and (begun.classes, begun.samples, begun.page_sizes) != (plan.classes, plan.samples, plan.page_sizes):
        log.info("%s: the source has changed since; starting from the beginning", workspace.folder)
        for shard in begun.shards_of(part):
            workspace.record_path(shard).unlink(missing_ok=True)
    workspace.write_plan(part, plan)


def write_part(workspace: Workspace, settings: ConvertSettings, source: Source, plan: ConversionPlan) -> None:
    """Write the shards of one part. Raises InputError if there are bad images, listing all of them."""
    part = settings.this_part
    bad: BadImages = []
    for split in source.splits:
        if plan.shards_of(part, split):
            share = share_of(split, settings, source, plan)
            total = sum(shard.num_images for shard in share.shards)
            with _traffic_logged(split), contextlib.closing(ConversionProgress(split, total)) as bar:
                bad += write_share(workspace, share, bar)
    bad_list = workspace.folder / (f"{part.name}-{BAD_LIST}" if settings.part else BAD_LIST)
    refuse_bad_images(bad_list, bad, sum(shard.num_images for shard in plan.shards_of(part)))


def share_of(split: str, settings: ConvertSettings, source: Source, plan: ConversionPlan) -> SplitShare:
    """What this part writes of a split."""
    images, page_size = source.splits[split], plan.page_sizes[split]
    shards = plan.shards_of(settings.this_part, split)
    return SplitShare(
        images=images,
        shards=shards,
        part=settings.this_part,
        handling=settings.handling(page_size),
        formats=settings.format,
        head_bytes=head_bytes(len(images), page_size) if shards[0].number == 0 else 0,
        page_size=page_size,
        workers=settings.workers,
        skip_bad=settings.on_bad == "skip",
    )


def refuse_bad_images(bad_list: Path, bad: BadImages, total: int) -> None:
    """Raises InputError if there are bad images among `total`, and lists them in a file."""
    if not bad:
        bad_list.unlink(missing_ok=True)
        return
    with complete_or_absent(bad_list) as file:
        file.writelines(f"{one_line(f'{where}: {reason}')}\n" for where, reason in bad)
    where, reason = bad[0]
    message = f"{where}: {reason}"
    if len(bad) > 1:
        message = f"{len(bad)} of {total} images cannot be used, listed in {bad_list}; the first is {message}"
    raise InputError(f"{message}; replace what is bad and start again, or leave it out with --on-bad skip")


def part_counts(workspace: Workspace, part: Part) -> dict[str, Any]:
    """What one of several parts has written."""
    counts = {"train": 0, "val": 0, "bad": 0, "reencoded": 0, "bytes": 0}
    for shard in workspace.begun_plan(part).shards_of(part):
        record = workspace.finished_record(shard)
        counts[shard.split] += record.samples
        counts["bad"] += sum("bad" in entry for entry in record.report)
        counts["reencoded"] += record.reencoded
        counts["bytes"] += record.bytes
    log.info("part %s is written; when all are, `--dst %s --merge` puts them together", part, workspace.dst)
    return {**counts, "part": str(part)}
