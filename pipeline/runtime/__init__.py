"""Run on Ray: start jobs, find or start a cluster, place work on nodes, export metrics."""
