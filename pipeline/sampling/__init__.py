"""Generate clips from images or held-out clips with an exported model, one by one or over the cluster."""
