"""Features of an item, computed from the ratings that users gave it."""

import numpy as np
import tensorflow as tf

# The mean of an item's n ratings is shrunk towards the mean of all by the factor n / (n + 5), so
# that an item that one user liked does not count as the best of all.
SHRINKAGE = 5.0
# Rounds of subspace iteration, and extra directions: enough for features.
ROUNDS = 10
OVERSAMPLING = 10


def item_features(
    users: np.ndarray, items: np.ndarray, values: np.ndarray, num_factors: int
) -> np.ndarray:
    """Returns the mean, the popularity and the latent factors of every item.

    An item's features are its shrunken mean rating, the logarithm of 1 + its number of ratings, and
    its entries in the `num_factors` leading right singular vectors of the rating matrix. The items'
    and the users' means are subtracted from that matrix, and missing ratings are 0 in it. Each
    feature is standardised over the items.

    Args:
        users: int64 of shape [ratings], 0 to the number of users - 1.
        items: int64 of shape [ratings], 0 to the number of items - 1, each at least once.
        values: float64 of shape [ratings], the ratings with mean 0.
        num_factors: number of singular vectors, at most the number of users and of items.

    Returns:
        float64 of shape [items, 2 + num_factors].
    """
    counts = np.bincount(items)
    means = np.bincount(items, values) / (counts + SHRINKAGE)
    residuals = values - means[items]
    user_means = np.bincount(users, residuals) / np.maximum(np.bincount(users), 1)
    factors = _right_singular_vectors(users, items, residuals - user_means[users], num_factors)
    features = np.column_stack([means, np.log1p(counts), factors])
    deviations = features.std(axis=0)
    return (features - features.mean(axis=0)) / np.where(deviations > 0, deviations, 1.0)


def _right_singular_vectors(
    rows: np.ndarray, columns: np.ndarray, values: np.ndarray, number: int
) -> np.ndarray:
    """Returns the leading right singular vectors [columns, number] of a sparse matrix.

    It uses subspace iteration and never makes the matrix dense. Each vector's element of largest
    magnitude is positive, which makes the vector unique.

    Reference: Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 53, 2011,
    algorithm 4.4.
    """
    shape = (int(rows.max()) + 1, int(columns.max()) + 1)
    with tf.device("CPU"):
        matrix = tf.sparse.reorder(tf.SparseTensor(np.stack([rows, columns], 1), values, shape))
        width = min(number + OVERSAMPLING, *shape)
        basis = np.random.default_rng(0).standard_normal((shape[1], width))
        for _ in range(ROUNDS):
            image = tf.sparse.sparse_dense_matmul(matrix, np.linalg.qr(basis)[0])
            basis = tf.sparse.sparse_dense_matmul(matrix, image, adjoint_a=True).numpy()
        basis = np.linalg.qr(basis)[0]
        image = tf.sparse.sparse_dense_matmul(matrix, basis).numpy()
    _, _, rotation = np.linalg.svd(image, full_matrices=False)
    vectors = (basis @ rotation.T)[:, :number]
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    return vectors * np.where(largest < 0, -1.0, 1.0)
