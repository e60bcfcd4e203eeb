"""A learned initialization as a SavedModel that adapts itself, and back as a Keras model.

`save_initialization` writes one folder per version, as model servers expect it:

    directory/
      1/
        saved_model.pb, variables/            the signatures below, for servers of any language
        assets.extra/initialization.keras     the Keras model, for `load_initialization`
      2/
        ...

Every signature takes one task, of any size: requests of different tasks seldom have support sets
of the same size, which an array of tasks would need.

    serving_default     x                              -> predictions, by the initialization
    adapt               support_x, support_y           -> the adapted parameters, by variable path
    adapt_and_predict   support_x, support_y, query_x  -> predictions, after adaptation

Adaptation is the learner's own flow, run in the graph; nothing is kept between requests. A flow
that does not arrive fails the request (INVALID_ARGUMENT) with the message of an `AdaptationError`.
Batch normalization does in all three what it does in the learner: with `batch_statistics=True` it
uses those of the inputs at hand, so the predictions for one x depend on the others beside it.
"""

from amaml_tf.saved_model.reading import load_initialization as load_initialization
from amaml_tf.saved_model.versions import find_version as find_version
from amaml_tf.saved_model.writing import save_initialization as save_initialization
