"""How an app has its phones prove that they are its own: `none`, or one of the verifiers here. One file each."""
