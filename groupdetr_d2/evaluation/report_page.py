"""The page of a run, `report.html`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import html_report
from .evaluation_report import Evaluation, write_evaluation
from .examples import Outcome, example_pictures
from .presentation import Presentation

FIGURES = {
    "pr_curve.png": "Precision and recall",
    "f1_curve.png": "F1 and the threshold",
    "confusion_matrix.png": "Confusion",
}
CURVES, BATCHES = "curves.png", "first_batches.jpg"


@dataclass(frozen=True)
class RunRecord:
    """The part of a report that is about the run rather than its detections.

    Attributes:
        facts: what is known of data, duration, machine and versions.
        losses: of the validation, by name; empty if they are not known.
        labels: the label statistics of each data set, a row a class.
        commands: the commands that a user may want next.
        config: the configuration as yaml.
    """

    facts: Mapping[str, str] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, Sequence[dict]] = field(default_factory=dict)
    commands: str = ""
    config: str = ""


def write_page(folder: Path, title: str, evaluated: dict[str, str], run: RunRecord) -> None:
    """Writes `report.html` with the pictures of the folder.

    Args:
        evaluated: the sections of the evaluation, see :func:`evaluation_sections`.
    """
    sections = dict(evaluated)
    sections["Training"] = training_section(folder, run)
    figures = {
        title: (folder / name).read_bytes()
        for name, title in FIGURES.items()
        if evaluated and (folder / name).is_file()  # else they are of an earlier evaluation
    }
    sections["Curves and confusion"] = html_report.grid(figures, "png") if figures else ""
    sections["Labels"] = "".join(
        html_report.folded(f"{name}: {len(rows) - 1} classes", html_report.table(rows))
        for name, rows in run.labels.items()
    )
    sections["Run"] = html_report.facts(run.facts) if run.facts else ""
    sections["Next"] = html_report.text(run.commands)
    sections["Configuration"] = html_report.folded("all keys", html_report.text(run.config))
    (folder / "report.html").write_text(html_report.page(title, sections), encoding="utf-8")


def training_section(folder: Path, run: RunRecord) -> str:
    """Shows the curves, the validation loss and the first batches, where there are any."""
    parts = []
    if run.losses:
        total, *terms = (f"{name} {value:.4g}" for name, value in run.losses.items())
        text = (
            f"The last validation loss: {total} over all decoder layers; of the last one "
            f"{', '.join(terms)}. It is that of the primary group, without denoising."
        )
        parts.append(html_report.paragraph(text))
    if (folder / CURVES).is_file():
        parts.append(html_report.image_tag(folder / CURVES, "Losses, metrics and learning rate"))
    if (folder / BATCHES).is_file():
        heading = "The first training batches, as the model saw them"
        picture = html_report.image_tag(folder / BATCHES, heading)
        parts.append(html_report.folded(heading, picture))
    return "".join(parts)


def evaluation_sections(
    evaluation: Evaluation, metrics: dict[str, float], folder: Path, shown: Presentation
) -> dict[str, str]:
    """Writes the tables and pictures of an evaluation; returns the sections that show them."""
    rows = write_evaluation(evaluation, metrics, folder, shown)
    return {
        "Summary": summary(evaluation, metrics, shown),
        "Examples": examples(evaluation, shown),
        "Classes": html_report.table(rows),
    }


def summary(evaluation: Evaluation, metrics: dict[str, float], shown: Presentation) -> str:
    """Shows the numbers that the report begins with, by size of objects, and the threshold."""
    precision, recall, f1 = evaluation.together.at(evaluation.threshold)
    numbers = {name: shown.text_of(name, metrics[name]) for name in shown.summary}
    rows: list[dict] = [
        {"objects": what, "AP": metrics[ap], "AR": metrics[ar]}
        for what, (ap, ar) in shown.by_size.items()
        if ap in metrics and ar in metrics
    ]
    best = (
        f"Best score threshold {evaluation.threshold:.3f} (F1 {f1:.3f}, precision "
        f"{precision:.3f}, recall {recall:.3f}); predict uses it by default."
    )
    few = [
        f"with {what} {metrics[name]:.1f}" for name, what in shown.few.items() if name in metrics
    ]
    words = f"AR of the detections of each class on an image: {', '.join(few)}." if few else ""
    parts = [html_report.key_numbers(numbers), html_report.table(rows) if rows else ""]
    return "".join([*parts, *(html_report.paragraph(text) for text in (words, best) if text)])


def examples(evaluation: Evaluation, shown: Presentation) -> str:
    """Shows the worst images, random ones and good ones."""
    outcomes = [Outcome.of(pairs) for pairs in evaluation.pairs]
    kinds = example_pictures(
        evaluation.images, outcomes, evaluation.names, evaluation.threshold, shown
    )
    return "".join(
        html_report.subsection(kind, html_report.grid(pictures, "jpeg"))
        for kind, pictures in kinds.items()
        if pictures
    )
