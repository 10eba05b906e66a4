"""Statistics of the inputs and output gradients of a model's weights, for calibrated reducers.

sources     the text: bundled, a file, a data set, or the training split of a task
samples     windows of tokens drawn from the text
overlap     refuses windows that contain evaluated documents
activations second moments and mean absolute values, block by block
experts     the inputs and output gradients of stacked experts, from the routing
gradients   the Fisher information, and second moments of output gradients
labels      the tokens whose likelihood is differentiated
loss        the model's loss on the text
cache       statistics on disk, addressed by content
statistics  the interface for a run
"""
