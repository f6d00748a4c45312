"""Vision: images and prompts as inputs of vision-language models, and the patch that each position holds.

`inputs` encodes an image and a prompt with the processor that `processors` loads. `layouts` says, for each model family, which
patch each position holds, with the views and patches of `patch_geometry`. `example_images` makes the smallest inputs for a
walk.
"""
