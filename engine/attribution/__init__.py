"""Attribution: which neurons a prediction depends on, by running the model with their activations changed."""
