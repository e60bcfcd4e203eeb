"""Reads labelled examples and queries from CSV files or folders of images, for the clients.

A CSV file has a header, and the target in its last column. In a file of queries, the target may be
left out. A folder of support images has one folder for each class, named by its label or in the
order of the labels; a folder of queries holds image files.
"""

import csv
import pathlib

import numpy as np


def read_support(path, dtype, shape, target_dtype, target_rank):
    """Returns the support set (x, y) as arrays.

    Args:
        path: a CSV file, or a folder with a folder of images for each class.
        dtype: numpy dtype of the model's inputs.
        shape: shape of one input.
        target_dtype: numpy dtype of the targets.
        target_rank: 1 for labels, one for each example, and 2 for a row of numbers.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
        files = [(file, label) for label, each in enumerate(folders) for file in _files(each)]
        x = np.stack([_image(file, dtype, shape) for file, _ in files])
        y = np.array([label for _, label in files], target_dtype)
        return x, y
    rows = _rows(path)
    x = np.array([row[:-1] for row in rows]).astype(dtype).reshape(-1, *shape)
    y = np.array([row[-1] for row in rows], "float64").astype(target_dtype)
    return x, y[:, np.newaxis] if target_rank == 2 else y


def read_queries(path, dtype, shape):
    """Returns the inputs to predict for; see `read_support`."""
    path = pathlib.Path(path)
    if path.is_dir():
        return np.stack([_image(file, dtype, shape) for file in _files(path)])
    columns = int(np.prod(shape))  # a target that is there is not sent
    return np.array([row[:columns] for row in _rows(path)]).astype(dtype).reshape(-1, *shape)


def _rows(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file))[1:]


def _files(folder):
    return sorted(file for file in folder.iterdir() if file.is_file())


def _image(path, dtype, shape):
    from PIL import Image

    height, width, channels = shape
    image = Image.open(path).convert({1: "L", 3: "RGB"}[channels])
    image = image.resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(image).reshape(shape)
    return pixels if dtype == "uint8" else (pixels / 255).astype(dtype)
