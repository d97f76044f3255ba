"""Constants of the local optimizers, for all who compute them. They are fixed: changing one is another program."""

MOMENTUM = 0.9
ADAM_BETA_1 = 0.9
ADAM_BETA_2 = 0.999
ADAM_EPSILON = 1e-7
