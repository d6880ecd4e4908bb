"""The page of a run, `report.html`."""

from pathlib import Path

from . import html_report
from .evaluation_report import Evaluation, write_evaluation
from .presentation import Presentation

PICTURES = {
    "curves.png": "Training",
    "predictions.png": "Worst images first: truth and predictions",
    "pr_curve.png": "Precision and recall",
    "f1_curve.png": "F1 and the threshold",
    "confusion_matrix.png": "Confusion",
    "first_batches.jpg": "The first training batches, as the model saw them",
}


def write_page(
    folder: Path, title: str, evaluated: dict[str, str], *, commands: str, config: str
) -> None:
    """Writes `report.html` with the pictures of the folder.

    Args:
        evaluated: the sections of the evaluation, see :func:`evaluation_sections`.
        commands: the commands that a user may want next.
        config: the configuration as yaml.
    """
    sections = dict(evaluated)
    for name, heading in PICTURES.items():
        if (folder / name).is_file():
            sections[heading] = html_report.image_tag(folder / name, heading)
    sections["Next"] = html_report.text(commands)
    sections["Configuration"] = html_report.folded("all keys", html_report.text(config))
    (folder / "report.html").write_text(html_report.page(title, sections), encoding="utf-8")


def evaluation_sections(
    evaluation: Evaluation, metrics: dict[str, float], folder: Path, shown: Presentation
) -> dict[str, str]:
    """Writes the tables and pictures of an evaluation; returns the sections that show them."""
    rows = write_evaluation(evaluation, metrics, folder, shown)
    precision, recall, f1 = evaluation.together.at(evaluation.threshold)
    numbers = {f" {name}": f"{metrics[name]:.1f}" for name in shown.summary}
    best = (
        f"<p>Best score threshold {evaluation.threshold:.3f} (F1 {f1:.3f}, precision "
        f"{precision:.3f}, recall {recall:.3f}); `predict` uses it by default.</p>"
    )
    summary = html_report.key_numbers(numbers) + best
    return {"Summary": summary, "Classes": html_report.table(rows)}
