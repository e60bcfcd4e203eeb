"""What an exported initialization is worth to plain Keras: `export/finetune_keras_app.py` measured.

    python -m benchmarks.fine_tuning --alpine=EXPORT --movielens=EXPORT --omniglot=EXPORT \
        --data_dir=DIR --python=OTHER/bin/python --output=docs/results/fine_tuning

The app runs as it is, by a Python in which this library and TensorFlow Probability are not
installed, on examples of tasks that the initialization has not seen: CSV files of Alpine functions
and of the ratings of single users, and folders of images of new characters. It trains from the
initialization and from random weights, for the same epochs. Nothing is chosen by the examples held
out: all epochs run, with one learning rate, and the last one counts. Writes a table and a figure.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from amaml_tf.files import write_atomically
from amaml_tf.provenance import provenance
from amaml_tf.tasks import AlpineFamily, OmniglotFamily
from amaml_tf.tasks.class_split import split_by_seed
from amaml_tf.tasks.ratings.movielens import load_movielens

APP = pathlib.Path(__file__).parents[1] / "export" / "finetune_keras_app.py"
STARTS = {"initialization": ".", "random weights": "random_weights"}  # their folders in the output


@dataclasses.dataclass(frozen=True)
class Setting:
    """One kind of data for the app.

    Attributes:
        name: for the table.
        export: the name of the flag that names the export.
        write: writes the examples of an unseen task, by its number, and returns the path.
        held_out: share of the examples that is not trained on.
        epochs: of training.
        learning_rate: of Adam.
        metric: its column in history.csv.
        label: the metric with its unit.
    """

    name: str
    export: str
    write: Callable[[int, pathlib.Path], pathlib.Path]
    held_out: float
    epochs: int
    learning_rate: float
    metric: str
    label: str


# -- data of unseen tasks --------------------------------------------------------------------------


def write_alpine(number: int, folder: pathlib.Path) -> pathlib.Path:
    """Writes 100 points of an unseen Alpine function, in its own units."""
    family = AlpineFamily(num_test_support=50, num_test_query=50)
    support, query = family.task_episode("test", number)
    x, y = (np.concatenate(parts) for parts in zip(support, query, strict=True))
    x = x * family.input_scale + family.input_mean
    y = y * family.target_scale + family.target_mean
    return _write_rows(folder / "points.csv", ["x1", "x2", "y"], np.hstack([x, y]).tolist())


def write_ratings(number: int, folder: pathlib.Path) -> pathlib.Path:
    """Writes the first 50 ratings of an unseen user with as many.

    The first three such users are left out. The number of epochs was chosen on them, where random
    weights were at their best: after 30 epochs, both starts have overfitted.
    """
    ratings = load_movielens("100k", flags.FLAGS.data_dir)
    names, users = np.unique(ratings.users, return_inverse=True)
    unseen = split_by_seed(len(names), 0)["test"]
    user = [each for each in unseen if np.sum(users == each) >= 50][number + 3]
    own = np.flatnonzero(users == user)
    own = own[np.argsort(ratings.times[own], kind="stable")][:50]
    rows = zip(ratings.items[own].tolist(), ratings.values[own].tolist(), strict=True)
    return _write_rows(folder / "ratings.csv", ["film", "rating"], rows)


def write_characters(number: int, folder: pathlib.Path) -> pathlib.Path:
    """Writes the 20 images of each of five unseen characters."""
    family = _omniglot(flags.FLAGS.omniglot_data_dir or flags.FLAGS.data_dir)
    episodes = family.episodes("test", batch_size=1, seed=number)
    examples = next(iter(episodes.take(1)))
    for part, (x, y) in zip(("support", "query"), examples, strict=True):
        for place, (image, label) in enumerate(zip(x[0].numpy(), y[0].numpy(), strict=True)):
            own = folder / f"character_{label}"
            own.mkdir(exist_ok=True)
            pixels = 255 - 255 * image  # black ink on white paper, as in the files
            keras.utils.save_img(own / f"{part}_{place}.png", pixels, scale=False)
    return folder


@functools.cache
def _omniglot(data_dir: str) -> OmniglotFamily:
    return OmniglotFamily(data_dir=data_dir, num_query=19)


def _write_rows(path: pathlib.Path, names: list[str], rows: object) -> pathlib.Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])  # type: ignore[misc]
    return path


SETTINGS = (
    Setting("Alpine, 50 points", "alpine", write_alpine, 0.5, 100, 0.01, "rmse", "RMSE"),
    Setting("MovieLens, 25 ratings of a user", "movielens", write_ratings, 0.5, 10, 0.001, "rmse",
            "RMSE, stars"),
    Setting("Omniglot, 5 images of each character", "omniglot", write_characters, 0.75, 60, 0.001,
            "accuracy", "accuracy"),
    Setting("Omniglot, 15 images of each character", "omniglot", write_characters, 0.25, 60, 0.001,
            "accuracy", "accuracy"),
)  # fmt: skip


# -- runs of the app -------------------------------------------------------------------------------


def curves_of(setting: Setting, number: int) -> dict[str, list[float]]:
    """Returns the metric on the examples held out, after each epoch, from both starts."""
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        (folder / "data").mkdir()
        data = setting.write(number, folder / "data")
        command = [
            *(flags.FLAGS.python, APP, f"--data={data}", f"--output={folder / 'tuned'}"),
            f"--initialization={flags.FLAGS[setting.export].value}",
            *(f"--epochs={setting.epochs}", f"--learning_rate={setting.learning_rate}"),
            *(f"--validation={setting.held_out}", f"--patience={9 * setting.epochs}"),
            *("--compare_random", f"--seed={number}"),
        ]
        environment = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        found = {}
        for start, own in STARTS.items():
            with open(folder / "tuned" / own / "history.csv", encoding="utf-8") as file:
                found[start] = [float(row[f"val_{setting.metric}"]) for row in csv.DictReader(file)]
    return found


def require_without_library(python: str) -> None:
    """Refuses a Python that could import this library or TensorFlow Probability."""
    names = "amaml_tf", "tensorflow_probability"
    code = f"import importlib.util as u; print(*map(u.find_spec, {names}))"
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd="/"
    )
    if found.stdout.strip() != "None None":
        raise SystemExit(f"Expected --python without this library and TFP, got {found.stdout}.")


# -- what is written -------------------------------------------------------------------------------


def table(results: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]) -> str:
    """Returns the table of the last epoch: means over tasks, and each task's own number."""
    lines = ["| learns from | epochs | measured | initialization | random weights | ahead |"]
    lines.append("|---|---|---|---|---|---|")
    for setting in SETTINGS:
        if setting.name not in results:
            continue
        last = {s: [curves[s][-1] for curves in results[setting.name]] for s in STARTS}
        better = np.subtract(last["initialization"], last["random weights"])
        ahead = np.sum(better > 0) if setting.metric == "accuracy" else np.sum(better < 0)
        cells = [f"{np.mean(v):.3f} ({', '.join(f'{x:.2f}' for x in v)})" for v in last.values()]
        row = (setting.name, str(setting.epochs), setting.label, *cells)
        lines.append(f"| {' | '.join(row)} | {ahead} of {len(better)} tasks |")
    return "\n".join(lines)


def draw(
    results: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], path: pathlib.Path
) -> None:
    """Draws the metric on the examples held out over the epochs, each task as a thin line."""
    shown = [setting for setting in SETTINGS if setting.name in results]
    figure = Figure(figsize=(3.6 * len(shown), 3.2), layout="constrained")
    for axes, setting in zip(np.ravel(figure.subplots(1, len(shown))), shown, strict=True):
        for start, color in zip(STARTS, ("tab:blue", "tab:orange"), strict=True):
            curves = np.array([found[start] for found in results[setting.name]])
            epochs = np.arange(1, curves.shape[1] + 1)
            axes.plot(epochs, curves.T, color=color, linewidth=0.7, alpha=0.5)
            axes.plot(epochs, curves.mean(axis=0), color=color, linewidth=2, label=f"from {start}")
        axes.set(title=setting.name, xlabel="epoch", ylabel=f"{setting.label}, held out")
        axes.title.set_fontsize("medium")
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)


def main(_: list[str]) -> None:
    """Runs the app on every kind of data whose export is named, and writes."""
    require_without_library(flags.FLAGS.python)
    folder = pathlib.Path(flags.FLAGS.output)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "curves.json"  # what is not measured now is kept from an earlier command
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for setting in SETTINGS:
        if flags.FLAGS[setting.export].value:
            numbers = range(flags.FLAGS.tasks)
            results[setting.name] = [curves_of(setting, number) for number in numbers]
            write_atomically(kept, json.dumps(results))
    facts = provenance("python -m benchmarks.fine_tuning")
    text = (
        "# Fine-tuning an export in plain Keras\n\nThe metric on examples held out, after the last "
        "epoch of `export/finetune_keras_app.py` (Adam, no early\nstopping), from the "
        "initialization and from random weights: the mean over tasks, and each task.\n\n"
        f"{table(results)}\n\n![The metric over the epochs](curves.png)\n\n"
        + "\n".join(f"- {name}: `{value}`" for name, value in facts.items())
    )
    draw(results, folder / "curves.png")
    write_atomically(folder / "table.md", f"{text}\n")
    print(table(results))


if __name__ == "__main__":  # here, because tests import this beside commands with such flags
    flags.DEFINE_string("alpine", None, "An export of the Alpine family.")
    flags.DEFINE_string("movielens", None, "An export of MovieLens-100K.")
    flags.DEFINE_string("omniglot", None, "An export of 5-way Omniglot.")
    flags.DEFINE_string("data_dir", None, "Where MovieLens lies, as tfds has prepared it.")
    flags.DEFINE_string("omniglot_data_dir", None, "Where Omniglot lies; default: --data_dir.")
    flags.DEFINE_string("python", None, "A Python without this library.", required=True)
    flags.DEFINE_string("output", None, "Folder of the results.", required=True)
    flags.DEFINE_integer("tasks", 3, "Unseen tasks of each kind.", lower_bound=1)
    app.run(main)
