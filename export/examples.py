"""Reads labelled examples and queries for the clients, and prints the answers.

- A CSV file has a header. The target is in its last column, or in the last columns if there are
  several numbers; a file of queries may leave it out.
- A folder of support images has a folder for each class: the first in the order of their names is
  label 0. A folder of queries holds image files. They are scaled down to the size that the model
  takes.
- An .npz file holds arrays by the names of the inputs, such as support_x and support_y. It is the
  way for models with several inputs, such as support_x_left and support_x_right.
"""

import csv
import math
import pathlib
import sys
import zipfile

import numpy as np


def read(support, query, specs):
    """Returns the inputs of `adapt_and_predict` by name; exits with a sentence if that fails.

    Args:
        support: path of the labelled examples.
        query: path of what to predict.
        specs: dtype (a name) and shape of each input by name, the first size being any.
    """
    try:
        found = _read(support, "support_", specs) | _read(query, "query_", specs)
        _require_same_columns(support, query, specs)
    except OSError as error:
        sys.exit(f"Expected a file or folder of examples, got {error}.")
    return found


def write(answer):
    """Prints the predictions as CSV with a header, and the losses of the support set."""
    before, after = float(answer["support_loss_before"]), float(answer["support_loss_after"])
    print(f"loss of the support set: {before:.4g}, after adaptation {after:.4g}", file=sys.stderr)
    columns = {}
    for name, values in answer.items():
        if name.startswith(("predictions", "probabilities", "classes")):
            values = np.asarray(values)
            rows = values.reshape(len(values), -1)
            for place, column in enumerate(rows.T):
                columns[f"{name}_{place}" if rows.shape[1] > 1 else name] = column
    print(*columns, sep=",")
    for row in zip(*columns.values(), strict=True):
        print(*(cell.decode() if isinstance(cell, bytes) else cell for cell in row), sep=",")


def _read(path, kind, specs):
    path, specs = pathlib.Path(path), {n: s for n, s in specs.items() if n.startswith(kind)}
    if path.suffix == ".npz":
        return _read_arrays(path, specs)
    x, *others = (spec for name, spec in specs.items() if name.startswith(f"{kind}x"))
    targets = [spec for name, spec in specs.items() if name.startswith(f"{kind}y")]
    if others or len(targets) > 1:
        sys.exit(f"Expected an .npz file with {', '.join(sorted(specs))}, got {path}.")
    if path.is_dir():
        return _read_images(path, kind, x, *targets)
    return _read_csv(path, kind, x, *targets)


def _read_arrays(path, specs):
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in specs.keys() & file.keys()}
            names = ", ".join(sorted(file))
        if specs.keys() - arrays.keys():
            sys.exit(f"Expected {', '.join(sorted(specs))} in {path}, got {names}.")
        found = {name: arrays[name].astype(dtype) for name, (dtype, _) in specs.items()}
        for name, values in found.items():
            if values.dtype.kind in "iu" and not np.array_equal(values, arrays[name]):
                sys.exit(f"Expected {name} of {values.dtype} in {path}, got other numbers.")
        return found
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        sys.exit(f"Expected an .npz file of arrays of numbers, got {path}: {error}.")


def _require_same_columns(support, query, specs):
    """Exits if the inputs of two CSV files have other names, or the same in another order."""
    paths = [pathlib.Path(path) for path in (support, query)]
    if any(path.is_dir() or path.suffix == ".npz" for path in paths):
        return
    width = math.prod(specs["support_x"][1][1:])
    expected, found = (_rows(path)[0][1][:width] for path in paths)
    if expected != found:
        sys.exit(
            f"Expected the columns {', '.join(expected)} of {support} in {query}, got "
            f"{', '.join(found)}; put them in one order."
        )


def _rows(path):
    """Returns the rows of a CSV file with their lines, the header first."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        sys.exit(f"Expected a CSV file in UTF-8, got {path}: {error}.")
    return rows or [(1, [])]


def _read_csv(path, kind, x, target=None):
    (_, header), *rows = _rows(path)
    width = math.prod(x[1][1:])
    targets = math.prod(target[1][1:]) if target else 0
    wanted = f"{width} columns of inputs" + (f" and {targets} of targets" if target else "")
    # A target in a file of queries is not sent.
    if not rows or (len(header) != width + targets if target else len(header) < width):
        sys.exit(f"Expected {wanted} in {path}, got {len(header)} columns and {len(rows)} rows.")
    found = {f"{kind}x": _numbers(path, header, rows, slice(0, width), *x)}
    if target:
        found[f"{kind}y"] = _numbers(path, header, rows, slice(width, None), *target)
    return found


def _numbers(path, header, rows, columns, dtype, shape):
    values = []
    for line, row in rows:
        if len(row) != len(header):
            sys.exit(f"Expected {len(header)} cells in line {line} of {path}, got {len(row)}.")
        for name, cell in zip(header[columns], row[columns], strict=True):
            value = _value(cell, dtype)
            if value is None:
                sys.exit(
                    f"Expected {dtype} in column {name!r} of {path}, got {cell!r}, line {line}."
                )
            values.append(value)
    return np.array(values, dtype).reshape(len(rows), *shape[1:])


def _value(cell, dtype):
    """Returns the value of a cell; None if it has another dtype."""
    if dtype == "str":
        return cell
    try:
        if not np.issubdtype(dtype, np.integer):
            value = float(cell)
            return value if abs(value) <= float(np.finfo(dtype).max) else None  # NaN is not
        whole = cell.strip().lstrip("+-").isdecimal()
        value = int(cell) if whole else int(float(cell))
        fine = whole or float(cell).is_integer()  # 1.0 is a label as well
        limits = np.iinfo(dtype)
        return value if fine and limits.min <= value <= limits.max else None
    except (ValueError, OverflowError):
        return None


def _read_images(path, kind, x, target=None):
    if len(x[1]) != 4:
        sys.exit(f"Expected a CSV file for inputs of shape {x[1][1:]}, got the folder {path}.")
    folders = sorted(each for each in path.iterdir() if each.is_dir()) if target else [path]
    files = [(file, label) for label, each in enumerate(folders) for file in _files(each)]
    if not files:
        what = "a folder of images for each class" if target else "image files"
        sys.exit(f"Expected {what} in {path}, got none.")
    found = {f"{kind}x": np.stack([_image(file, *x) for file, _ in files])}
    if target:
        found[f"{kind}y"] = np.array([label for _, label in files], target[0])
    return found


def _files(folder):
    return sorted(file for file in folder.iterdir() if file.is_file())


def _image(path, dtype, shape):
    from PIL import Image

    _, height, width, channels = shape
    try:
        image = Image.open(path).convert({1: "L", 3: "RGB"}[channels])
    except (OSError, ValueError) as error:
        sys.exit(f"Expected an image, got {path}: {error}.")
    if abs(image.width * height - image.height * width) > max(image.size):
        sys.exit(
            f"Expected an image of the proportions {width} x {height}, got {image.width} x "
            f"{image.height} in {path}; crop it."
        )
    image = image.resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(image).reshape(shape[1:])
    return pixels if dtype == "uint8" else (pixels / 255).astype(dtype)
