"""Reads OpenMetrics from stdin with the strict parser of its reference implementation, and prints the samples."""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families

samples = {}
for family in text_string_to_metric_families(sys.stdin.read()):
    if not family.documentation:
        sys.exit(f"{family.name} is not explained")
    for sample in family.samples:
        labels = ",".join(f'{key}="{value}"' for key, value in sample.labels.items())
        samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
json.dump(samples, sys.stdout)
