"""Device programs: making them from Keras models (`compile`), reading and checking them, running them (`runner`).

Only `compile` and `lowering` load TensorFlow; `runner` loads LiteRT when a program first runs.
"""
