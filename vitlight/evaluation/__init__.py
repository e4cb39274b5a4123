"""What a network's features are worth while its weights stay as they are: few-shot ridge regression, nearest neighbours,
linear probes."""
