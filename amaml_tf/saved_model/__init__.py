"""Export and loading of a learned initialization, as a SavedModel that adapts itself.

`save_initialization` writes one folder per version, as model servers expect it:

    directory/
      1/
        saved_model.pb, variables/            the signatures below, for servers of any language
        assets.extra/initialization.keras     the Keras model, for `load_initialization`
      2/
        ...

Every signature takes one task of any size. An array of tasks would need support sets of the same
size, which requests of different tasks seldom have.

    serving_default     x                              -> predictions, by the initialization
    adapt               support_x, support_y           -> the adapted parameters, by variable path
    adapt_and_predict   support_x, support_y, query_x  -> predictions, after adaptation

Adaptation is the learner's own flow, run in the graph; nothing is kept between requests. If the
flow fails, the request fails (INVALID_ARGUMENT) with the message of an `AdaptationError`. Batch
normalization works in all three signatures as in the learner: with `batch_statistics=True` it uses
the statistics of the given inputs, so the prediction for one x depends on the other inputs.
"""

from amaml_tf.saved_model.reading import load_initialization as load_initialization
from amaml_tf.saved_model.versions import find_version as find_version
from amaml_tf.saved_model.writing import save_initialization as save_initialization
