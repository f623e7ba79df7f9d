"""The tables of `--report`, from the JSON files of the parts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.cli import number
from tools.bench import report
from tools.bench.gpu.loaders import loader_of, threads_of
from tools.bench.gpu.models import MATRIX
from tools.bench.gpu.published import MODEL_ALONE, WHOLE, Published
from tools.bench.gpu.record import read
from tools.bench.gpu.settings import PARTS

Figures = Mapping[str, Mapping[str, Any]]
Table = tuple[tuple[str, ...], Sequence[tuple[Any, ...]]]
"""Names of columns, and rows of text."""


def text_of(out: Path) -> str:
    """Everything that was measured, in tables, with the machine, and what was left out."""
    blocks = []
    for part in PARTS:
        content = read(out, part)
        if content is None:
            blocks.append(f"{part}: not measured")
            continue
        figures = content["figures"]
        header, rows = TABLES[part](figures)
        lines = [f"{part} ({content['date']}, {report.machine_line(content['machine'])})"]
        lines += [report.table(header, rows)] if rows else []
        lines += SENTENCES[part](out, figures) if part in SENTENCES else []
        lines += [f"left out: {name}: {why}" for name, why in content["left_out"].items()]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def tests_table(figures: Figures) -> Table:
    """Outcomes, and how often."""
    outcomes = [figure["outcome"] for figure in figures.values()]
    rows = [(name, str(outcomes.count(name))) for name in dict.fromkeys(outcomes)]
    rows += [(f"  {name}", figure["outcome"]) for name, figure in figures.items() if figure["outcome"] != "passed"]
    return ("tests", "outcome"), rows


def loaders_table(figures: Figures) -> Table:
    """A row for each loader, a column for each number of threads."""
    threads = sorted({threads_of(name) for name in figures})
    by_loader: dict[str, dict[int, Mapping[str, Any]]] = {}
    for name, figure in figures.items():
        by_loader.setdefault(loader_of(name), {})[threads_of(name)] = figure
    rows = []
    for loader, measured in by_loader.items():
        most = measured[max(measured)]
        rates = [number(measured[count]["images_per_s"]) if count in measured else "" for count in threads]
        engine = most.get("jpeg_engine_percent", "")
        rows.append((loader, *rates, str(most["cores_used"]), str(most["cpu_us_per_image"]), str(engine)))
    columns = [f"{count} {'thread' if count == 1 else 'threads'}" for count in threads]
    return ("images/s", *columns, "cores used", "CPU µs an image", "JPEG engine %"), rows


def models_table(figures: Figures) -> Table:
    """Training steps of ours and of the reference."""
    rows = [
        (
            name,
            str(figure["batch_size"]),
            number(figure["step_ours_images_per_s"]),
            number(figure["step_reference_images_per_s"]),
            figure["reference"],
            percent(figure.get("share_of_matrix_rate")),
            f"{figure['step_ours_mib']:.0f}",
        )
        for name, figure in figures.items()
        if name != MATRIX
    ]
    return ("training step", "batch", "images/s", "reference", "whose", "of matrix rate", "MiB"), rows


def training_table(figures: Figures) -> Table:
    """Loader, model, and both."""
    rows = [
        (
            name,
            number(figure["loader_images_per_s"]),
            number(figure["model_images_per_s"]),
            number(figure["images_per_s"]),
            percent(figure["data_wait"]),
            percent(figure.get("share_of_matrix_rate")),
            figure["limited_by"],
        )
        for name, figure in figures.items()
        if name != MATRIX
    ]
    return ("images/s", "loader alone", "model alone", "together", "waits for data", "of matrix rate", "limit"), rows


def verdicts_table(figures: Figures) -> Table:
    """What was predicted, and what then happened."""
    said = {True: "yes", False: "NO", None: "cannot be shown"}
    rows = [
        (
            name,
            number(figure["predicted_images_per_s"]),
            number(figure["trained_images_per_s"]),
            f"{figure['prediction_error']:+.1%}",
            "yes" if figure["within_tolerance"] else "NO",
            number(figure["without_loading_images_per_s"]),
            figure["limited_by"],
            said[figure["is_true"]],
        )
        for name, figure in figures.items()
    ]
    return ("", "predicted", "trained", "error", "within 10%", "without loading", "verdict", "true"), rows


def accuracy_table(figures: Figures) -> Table:
    """The evaluations of the run."""
    evaluations = figures["training"]["evaluations"] if "training" in figures else []
    return ("epoch", "top-1", "top-5"), [
        (f"{row['epoch']:g}", f"{row['top1']:.2f}%", f"{row['top5']:.2f}%") for row in evaluations
    ]


def percent(share: float | None) -> str:
    """A share, where there is one."""
    return "" if share is None else f"{share:.1%}"


# Sentences below a table


def matrix_sentences(out: Path, figures: Figures) -> list[str]:
    """The measured matrix rate."""
    if MATRIX not in figures:
        return []
    matrix = figures[MATRIX]
    return [f"{MATRIX} of {matrix['side']}: {matrix['tflops']:.4g} TFLOP/s on this device"]


def published_sentences(published: Mapping[str, tuple[Published, ...]]) -> Callable[[Path, Figures], list[str]]:
    """What others published of the models that were measured, and the matrix rate."""

    def sentences(out: Path, figures: Figures) -> list[str]:
        measured = {name.partition(", ")[0] for name in figures}
        return matrix_sentences(out, figures) + [
            f"published: {model}, {number(one.images_per_s)} images/s on one {one.card} ({one.who}: {one.how})"
            for model, rates in published.items()
            if model in measured
            for one in rates
        ]

    return sentences


def core_sentences(out: Path, figures: Figures) -> list[str]:
    """How many threads of each loader feed each model, at its fastest in the training part."""
    training = read(out, "training")
    if training is None:
        return ["threads that feed a model: not known before the training part is measured"]
    needed: dict[str, float] = {}
    for name, figure in training["figures"].items():
        if name != MATRIX:
            model = name.partition(", ")[0]
            needed[model] = max(needed.get(model, 0.0), figure["model_images_per_s"])
    columns = [dict(threads_needed(figures, rate)) for rate in needed.values()]
    header = ("threads that feed", *(f"{model} at {number(rate)}" for model, rate in needed.items()))
    loaders = dict.fromkeys(loader_of(name) for name in figures)
    return [report.table(header, [(loader, *(column[loader] for column in columns)) for loader in loaders])]


def threads_needed(figures: Figures, images_per_s: float) -> Iterator[tuple[str, str]]:
    """By loader: how many threads reach a rate, between two measured numbers on a straight line."""
    by_loader: dict[str, list[tuple[int, float]]] = {}
    for name, figure in figures.items():
        by_loader.setdefault(loader_of(name), []).append((threads_of(name), figure["images_per_s"]))
    for loader, points in by_loader.items():
        ordered = [(0, 0.0), *sorted(points)]
        yield (
            loader,
            next(
                (
                    f"{low + (high - low) * (images_per_s - below) / (above - below):.1f}"
                    for (low, below), (high, above) in pairwise(ordered)
                    if below < images_per_s <= above
                ),
                f"more than {ordered[-1][0]}",
            ),
        )


def accuracy_sentences(out: Path, figures: Figures) -> list[str]:
    """How far the run is, and whether its loader limited it."""
    if "training" not in figures:
        return []
    run, lines = figures["training"], []
    state = "finished" if run["finished"] else f"stopped after {run['epochs']:.2f} epochs"
    lines.append(f"train/run.py {run['flags']}: {state}, {run['seconds']:.0f} s in all calls")
    if run["top1"] is not None and "published_top1" in run:
        lines.append(f"top-1 {run['top1']:.2f}%; published {run['published_top1']:.1f}%")
    if run["images_per_s"] and "rate without loading" in figures:
        ceiling = figures["rate without loading"]["images_per_s"]
        lines.append(
            f"{number(run['images_per_s'])} images/s, without loading {number(ceiling)}; of the time between two log "
            f"lines it waited for data {run['data_wait']:.1%} (median), {run['data_wait_max']:.1%} (at most)"
        )
    return lines


TABLES: dict[str, Callable[[Figures], Table]] = {
    "tests": tests_table,
    "loaders": loaders_table,
    "models": models_table,
    "training": training_table,
    "verdicts": verdicts_table,
    "accuracy": accuracy_table,
}
SENTENCES: dict[str, Callable[[Path, Figures], list[str]]] = {
    "loaders": core_sentences,
    "models": published_sentences(MODEL_ALONE),
    "training": published_sentences(WHOLE),
    "accuracy": accuracy_sentences,
}
