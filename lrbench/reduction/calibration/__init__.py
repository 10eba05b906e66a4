"""Statistics of what enters a model's weights, for the reducers that need them.

sources     text: bundled, a file, a data set, or the training split of a task
samples     windows of tokens drawn from it
overlap     refuses windows that hold what is evaluated
activations second moments and mean sizes, block by block; experts: their inputs, by the routing
gradients   the Fisher information
loss        how well the text is predicted
cache       statistics on disk, by content
statistics  all of it together: what a run asks
"""
