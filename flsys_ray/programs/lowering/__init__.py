"""From a Keras model to a device program of built-in LiteRT operators only.

The Keras graph is replayed layer by layer, with one lowering function a layer type (`registry.py`), and
differentiated with an ordinary `tf.GradientTape`. The alternative, to run the Keras model itself under
`gradient_override_map` with gradients registered for the operators that LiteRT lacks, handles a few more models but:

- padded examples would move batch-norm statistics (a replay weighs them with the mask);
- dropout could not be derived from the inputs (a replay brings its own noise, `random.py`);
- convolutions would stay CONV_2D and TRANSPOSE_CONV with non-constant weights, which are slow in browsers
  (a replay writes them as matrix products);
- a failure would name an operator deep in the converter (a replay names the layer).

Lowering functions use operators whose TensorFlow gradients are built-in LiteRT operators themselves, or bring their own
gradient. What a layer does in training must not mix padded examples into others; see `BatchNormalization`.

    leaves.py        which variables a model has, their names, places in the flat vector, initialisers, regularisers
    replay.py        walks the Keras graph; `Call` is what a lowering function sees
    registry.py      `@lowers(keras.layers.Dense)`: the one place where a layer type meets its function
    layers/          the lowering functions, one file a family
    random.py        counter-based random numbers from integer operators
    initializers.py  Keras initialisers on these random numbers
    losses.py        masked cross-entropy
    optimizers.py    the local optimizers
    signatures.py    the four signatures
    convert.py       TensorFlow module -> flatbuffer; converter errors -> `NotLowerable`
"""
