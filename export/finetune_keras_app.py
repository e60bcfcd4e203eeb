"""Fine-tunes an exported initialization in plain Keras, on a CSV file or a folder of images.

    python finetune_keras_app.py --initialization=EXPORT --data=examples.csv --output=tuned
    python finetune_keras_app.py --initialization=EXPORT --data=images --output=tuned --new_head

It needs TensorFlow and Keras, and draws curves if matplotlib is there. A CSV file has a header; the
target is its last column, or --target=NAME. A folder of images has one folder for each class.

Written to --output: model.keras (the best epoch), history.csv, metrics.json, curves.png, and for
classifiers classes.json, the names of the classes in the order of the outputs.
"""

import argparse
import csv
import json
import pathlib
import sys

import keras
import tensorflow as tf

KERAS_FILE = pathlib.Path("assets.extra", "initialization.keras")


def arguments():
    """Returns the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--initialization", required=True, help="an export, one version of it, or a .keras file")
    add("--data", required=True, help="a CSV file, or a folder with a folder of images a class")
    add("--output", required=True, help="folder to write")
    add("--test", help="a CSV file or folder to evaluate on; default: the validation examples")
    add("--target", help="name of the target column; default: the last")
    add("--classes", action="store_true", help="the CSV file's targets are classes")
    add("--new_head", action="store_true", help="replace the last dense layer by a new one")
    add("--freeze", action="store_true", help="train the last dense layer only")
    add("--epochs", type=int, default=100)
    add("--batch_size", type=int, default=16)
    add("--learning_rate", type=float, default=1e-3)
    add("--validation", type=float, default=0.2, help="share of the examples; 0: no validation")
    add("--patience", type=int, default=15, help="epochs without progress before it stops")
    add("--invert", action="store_true", help="swap black and white in images")
    add("--compare_random", action="store_true", help="train random weights in the same way")
    add("--seed", type=int, default=0)
    return parser.parse_args()


# -- the initialization --------------------------------------------------------------------------


def load(path):
    """Returns the Keras model of an export: of its highest version, unless `path` names one."""
    path = pathlib.Path(path)
    if path.suffix != ".keras":
        if not (path / KERAS_FILE).exists():
            versions = [int(p.name) for p in path.glob("*") if p.name.isdecimal()]
            versions = [v for v in versions if (path / str(v) / KERAS_FILE).exists()]
            if not versions:
                sys.exit(f"Expected an exported initialization, got {path}; pass its folder.")
            path = path / str(max(versions))
        path = path / KERAS_FILE
    return keras.models.load_model(path, compile=False)


def head_of(model):
    """Returns the last dense layer."""
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    if not dense:
        sys.exit("Expected a model with a dense layer as its head, got none; replace it in code.")
    return dense[-1]


def with_new_head(model, num_outputs):
    """Returns the model with a new last dense layer; what came after the old one is dropped."""
    head = head_of(model)
    outputs = keras.layers.Dense(num_outputs, dtype=head.dtype_policy, name="new_head")(head.input)
    return keras.Model(model.inputs, outputs)


def with_random_weights(model):
    """Returns the model with new weights; what no training changes, such as tables, is kept."""
    clone = keras.models.clone_model(model)
    for old, new in zip(model.layers, clone.layers, strict=True):
        if old.weights and not old.trainable_weights:
            new.set_weights(old.get_weights())
    return clone


# -- the data ------------------------------------------------------------------------------------


def read(path, model, options, classes=None):
    """Returns (x, y, names of the classes or None) of a CSV file or a folder of images.

    `classes` are those of the training data, so that test data has the same labels.
    """
    path = pathlib.Path(path)
    if not path.exists():
        sys.exit(f"Expected a CSV file or a folder of images, got {path}, which is not there.")
    if path.is_dir():
        return read_images(path, model, options.invert, classes)
    return read_csv(path, model, options, classes)


def read_csv(path, model, options, classes):
    """Returns what `read` does."""
    header, rows = read_rows(path)
    target = options.target or header[-1]
    names = options.inputs or [name for name in header if name != target]
    for name in (*names, target):
        if name not in header:
            sys.exit(f"Expected a column {name!r} in {path}, got {', '.join(header)}.")
    options.inputs, options.target = names, target  # test data has its columns by the same names
    wanted = model.inputs[0]
    if len(wanted.shape) > 1 and wanted.shape[1:] != (len(names),):
        found = f"{len(names)} columns beside {target!r}"
        sys.exit(f"Expected inputs of shape {wanted.shape[1:]} in {path}, got {found}.")
    columns = [column(rows, name, wanted.dtype, path) for name in names]
    x = tf.reshape(tf.transpose(tf.constant(columns, wanted.dtype)), [-1, *wanted.shape[1:]])
    if not options.classes:
        return x, tf.constant(column(rows, target, "float32", path))[:, tf.newaxis], None
    values = column(rows, target, "string", path)
    kind = int if all(value.isdecimal() for value in values) else str  # 2 before 10
    classes = classes or sorted(set(values), key=kind)
    if not set(values) <= set(classes):
        sys.exit(f"Expected the classes {classes} in {path}, got {sorted(set(values))}.")
    return x, tf.constant([classes.index(value) for value in values]), classes


def read_rows(path):
    """Returns the header of a CSV file, and its rows with their lines."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        sys.exit(f"Expected a CSV file in UTF-8, got {path}: {error}.")
    if len(rows) < 2:
        sys.exit(f"Expected a CSV file with a header and examples, got none in {path}.")
    (_, header), *rows = [(line, [cell.strip() for cell in row]) for line, row in rows]
    if len(set(header)) < len(header):
        sys.exit(f"Expected columns of different names in {path}, got {', '.join(header)}.")
    for line, row in rows:
        if len(row) > len(header):
            sys.exit(f"Expected {len(header)} cells in line {line} of {path}, got {len(row)}.")
    return header, [(line, dict(zip(header, row, strict=False))) for line, row in rows]


def column(rows, name, dtype, path):
    """Returns the values of a column; exits with the line of what is no value."""
    kind = {"string": str, "int32": int, "int64": int}.get(dtype, float)
    values, dtype = [], tf.as_dtype(dtype)
    for line, row in rows:
        cell = row.get(name)  # None if the row is too short
        try:
            value = cell if kind is str else kind(cell)
            fine = bool(cell) if kind is str else kind(dtype.min) <= value <= kind(dtype.max)
        except (TypeError, ValueError):
            fine = False
        if not fine:
            what = f"{kind.__name__} in column {name!r} of {path}"
            sys.exit(f"Expected {what}, got {cell!r} in line {line}.")
        values.append(value)
    return values


def read_images(path, model, invert, classes):
    """Returns what `read` does, of a folder with a folder of images for each class."""
    wanted = model.inputs[0]
    if len(wanted.shape) != 4:
        sys.exit(f"Expected a CSV file for inputs of shape {wanted.shape}, got the folder {path}.")
    height, width, channels = wanted.shape[1:]
    folders = {each.name for each in path.iterdir() if each.is_dir()}
    if classes and folders - set(classes):
        sys.exit(f"Expected the classes {classes} in {path}, got {sorted(folders)}.")
    form = {"color_mode": {1: "grayscale", 3: "rgb", 4: "rgba"}[channels], "interpolation": "area"}
    order = {"batch_size": None, "shuffle": False, "verbose": False}
    try:
        images = keras.utils.image_dataset_from_directory(
            path, class_names=classes, image_size=(height, width), **form, **order
        )
    except ValueError as error:
        sys.exit(f"Expected a folder of images for each class in {path}: {error}")
    try:
        for file in images.file_paths:  # the error of all of them would not name it
            tf.io.decode_image(tf.io.read_file(file))
        x, y = next(iter(images.batch(len(images))))
    except tf.errors.OpError:
        sys.exit(f"Expected an image, got {file}, which is damaged.")
    empty = set(range(len(images.class_names))) - set(y.numpy().tolist())
    if empty and not classes:
        names = ", ".join(images.class_names[n] for n in sorted(empty))
        sys.exit(f"Expected .png, .jpg, .bmp or .gif images in {path} for {names}, got none.")
    x = 255 - x if invert else x
    x = tf.cast(tf.round(x), tf.uint8) if wanted.dtype == "uint8" else x / 255
    return x, y, images.class_names


def split(x, y, classes, share, seed):
    """Returns training and validation examples; each class has its share of both."""
    order = tf.random.experimental.stateless_shuffle(tf.range(len(y)), seed=(seed, 0)).numpy()
    kinds = [0] * len(y) if classes is None else y.numpy()
    taken = []
    for kind in sorted(set(kinds)):
        own = [i for i in order if kinds[i] == kind]
        taken += own[: round(share * len(own))]
    rest = [i for i in order if i not in set(taken)]
    if not rest or share < 0:
        sys.exit(f"Expected examples to train on, got {len(y)}; pass another --validation.")
    return tuple((tf.gather(x, rows), tf.gather(y, rows)) for rows in (rest, taken) if rows)


# -- training ------------------------------------------------------------------------------------


def compile_for(model, classes, options):
    """Compiles the model for regression or classification."""
    if classes is None:
        loss, metrics = "mse", [keras.metrics.RootMeanSquaredError("rmse")]
    else:
        normalized = getattr(model.layers[-1], "activation", None) is keras.activations.softmax
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not normalized)
        metrics = ["accuracy"]
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # Keras's 0.99 needs hundreds of steps to follow small data
    if options.freeze:
        for layer in model.layers:
            layer.trainable = layer is head_of(model)
    model.compile(keras.optimizers.Adam(options.learning_rate), loss=loss, metrics=metrics)


def fine_tune(model, training, validation, options, folder):
    """Trains with early stopping; the model then holds its best epoch. Returns the history."""
    monitor = "val_loss" if validation else "loss"
    callbacks = [
        keras.callbacks.EarlyStopping(
            monitor, patience=options.patience, restore_best_weights=True, start_from_epoch=1
        ),
        keras.callbacks.ReduceLROnPlateau(monitor, patience=max(1, options.patience // 3)),
        keras.callbacks.CSVLogger(str(folder / "history.csv")),
    ]
    sizes = {"epochs": options.epochs, "batch_size": options.batch_size}
    history = model.fit(
        *training, validation_data=validation, callbacks=callbacks, verbose=0, **sizes
    )
    return history.history


def draw(histories, path):
    """Draws the losses over the epochs, if matplotlib is there."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("No curves: matplotlib is not installed.")
        return
    axes = (figure := Figure(figsize=(6, 4))).subplots()
    for name, history in histories.items():
        for key, style in (("loss", "--"), ("val_loss", "-")):
            if key in history:
                label = f"{name}, {'validation' if key == 'val_loss' else 'training'}"
                axes.plot(history[key], style, label=label)
    axes.set(xlabel="epoch", ylabel="loss", yscale="log")
    axes.legend()
    figure.savefig(path)


def main():
    """Runs the app."""
    options = arguments()
    keras.utils.set_random_seed(options.seed)
    folder = pathlib.Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    model = load(options.initialization)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        sys.exit("Expected a model of one input and one output, got more; fine-tune it in code.")
    options.inputs = None
    x, y, classes = read(options.data, model, options)
    if classes is not None and len(classes) < 2:
        sys.exit(f"Expected two classes or more in {options.data}, got {len(classes)}.")
    num_outputs = y.shape[-1] if classes is None else len(classes)
    if options.new_head:
        model = with_new_head(model, num_outputs)
    elif model.output_shape[-1] != num_outputs:
        sys.exit(
            f"Expected data for the model's {model.output_shape[-1]} outputs, got {num_outputs}; "
            "pass --new_head."
        )
    training, *others = split(x, y, classes, options.validation, options.seed)
    validation = others[0] if others else None
    test = validation or training
    if options.test:
        test = read(options.test, model, options, classes)[:2]
    models = {"initialization": model}
    if options.compare_random:
        models["random weights"] = with_random_weights(model)
    histories, results = {}, {}
    for name, each in models.items():
        keras.utils.set_random_seed(options.seed)
        place = folder if each is model else folder / "random_weights"
        place.mkdir(exist_ok=True)
        compile_for(each, classes, options)
        before = each.evaluate(*test, verbose=0, return_dict=True)
        histories[name] = fine_tune(each, training, validation, options, place)
        after = each.evaluate(*test, verbose=0, return_dict=True)
        results[name] = {**after, "before": before, "epochs": len(histories[name].get("loss", ()))}
        each.save(place / "model.keras")
        for when, found in (("before", before), ("after", after)):
            print(name, when, {key: round(float(value), 4) for key, value in found.items()})
    (folder / "metrics.json").write_text(json.dumps(results, indent=2))
    if classes is not None:
        (folder / "classes.json").write_text(json.dumps(classes, indent=2, ensure_ascii=False))
    draw(histories, folder / "curves.png")


if __name__ == "__main__":
    main()
