"""What stands in the `results/` of a campaign."""

FIT_FILE = "fit.json"
OBSERVATIONS_FILE = "observations.csv"
# Of a study: its deployments over their cycles, and the samples that percentiles are of.
DEPLOYMENTS_FILE = "deployments.csv"
SAMPLES_FILE = "latencies.h5"
