"""Export and loading of a learned initialization, as a SavedModel that adapts itself.

`save_initialization` writes one folder per version, as model servers expect it:

    directory/
      1/
        saved_model.pb, variables/            the signatures below, for servers of any language
        assets.extra/initialization.keras     the Keras model, for `load_initialization`
      2/
        ...

Signatures:

    serving_default             x                               -> predictions, not adapted
    adapt                       support_x, support_y            -> parameters, by places
    predict_with                these parameters, x             -> predictions
    adapt_and_predict           support_x, support_y, query_x   -> predictions, after adaptation
    adapt_and_predict_batch     the same of several tasks, and support_weight (0 is padding)
    adapt_weighted,             these with support_weight and final_time (SavedModels have no
    adapt_and_predict_weighted, optional inputs)
    adapt_and_predict_timed_batch

What adapts also answers `support_loss_before`, `support_loss_after` and `gradient_evaluations`.
Adaptation is the learner's own flow, run in the graph, up to a bound of gradient evaluations;
nothing is kept between requests. What is wrong with a request is told with INVALID_ARGUMENT, in a
sentence. Of several tasks, a wrong one does not touch the others: `error` tells of each task.

After adaptation, batch normalization uses the statistics of the support set, so that an answer does
not depend on the other queries of a request (see `query_statistics`). `serving_default` and the
Keras model use stored ones: averages over support sets of training (see `stored_statistics`).
"""

from amaml_tf.saved_model.bounds import Bounds as Bounds
from amaml_tf.saved_model.contract import describe as describe
from amaml_tf.saved_model.contract import read_contract as read_contract
from amaml_tf.saved_model.reading import load_initialization as load_initialization
from amaml_tf.saved_model.versions import find_version as find_version
from amaml_tf.saved_model.writing import save_initialization as save_initialization
